"""How long things take on a described device, and how many bytes, joules and dollars they are: FLOP and bytes over
rates. Pure, and one function a quantity, so that each can be held against a hand's reckoning and a real step.

The model: matrix products cost 6 FLOP for each trainable parameter and token (forward 2, both gradients 4; Kaplan et
al. 2020), 4 for each frozen one below adapters (forward and the gradient that passes through); attention's own
products are left out, which is fair while a context is short against 6 x the hidden width. Products go no faster than
their weights come from memory, once a micro-batch; everything that walks over flat vectors (sums, optimiser, codec)
runs at memory speed; each lease and each micro-batch has a fixed price on top. Times are integer nanoseconds.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import ceil
from typing import Literal

from medley.policies.devices import Device
from medley.protocol.spec import Compression, JobSpec, Train

NS_PER_S = 1_000_000_000
NS_PER_H = 3600 * NS_PER_S

FP32 = 4
LEASE_NS = 4_000_000  # reading samples, the pipe, the commands of one lease
BATCH_NS = 2_000_000  # calls of one micro-batch, forward and backward
STAGE_NS = 300_000  # of one part at a shard, whatever its size
APPLY_NS = 500_000  # of one commit at a shard
DISK_BYTES_PER_S = 400_000_000.0  # checkpoints: written, synced and hashed
SPOT_SHARE = 0.35  # of the price of a machine that cannot be taken away; clouds ask 0.2 to 0.5

# How often a codec walks over the fp32 vector, reads and writes counted apart; topk selects, which is many passes.
_ENCODE_PASSES = {"none": 2.0, "fp16": 6.0, "int8": 8.0, "topk": 60.0}
_DECODE_PASSES = {"none": 2.0, "fp16": 3.0, "int8": 3.0, "topk": 3.0}
_FEEDBACK_PASSES = 7.0  # compensate, decode, absorb, norm
_CODEC_GROUP = 1024  # values that share a scale (`compression.groups`)
_TOPK_CHUNK = 4096
# Memory that a process of torch holds before it holds a model.
PROCESS_NBYTES = 600 << 20
SHARD_PROCESS_NBYTES = 300 << 20


@dataclass(frozen=True, slots=True)
class Size:
    """What a job's model weighs. `compute_nbytes` is of one parameter where it computes: 4 in fp32, 2 in bf16."""

    parameters: int
    frozen_parameters: int = 0
    tokens_per_sample: int = 256
    compute_nbytes: int = FP32

    @property
    def every_parameter(self) -> int:
        return self.parameters + self.frozen_parameters


# -- arithmetic ---------------------------------------------------------------------------------------------------


def train_flops(size: Size, tokens: float) -> float:
    """Of forward and backward over so many tokens."""
    return (6.0 * size.parameters + 4.0 * size.frozen_parameters) * tokens


def forward_flops(size: Size, tokens: float) -> float:
    return 2.0 * size.every_parameter * tokens


def micro_batches(device: Device, size: Size, samples: int, steps: int = 1) -> int:
    """How many passes over the weights a lease takes; each of its steps at least one."""
    steps = max(1, steps)
    return steps * max(1, ceil(samples * size.tokens_per_sample / steps / device.tokens_at_once))


# -- a worker -----------------------------------------------------------------------------------------------------


def lease_ns(device: Device, size: Size, train: Train, samples: int, steps: int = 1, slowness: float = 1.0) -> int:
    """From the command to the encoded update. `slowness` multiplies all of it (the straggler's factor)."""
    passes = micro_batches(device, size, samples, steps)
    products = max(
        train_flops(size, samples * size.tokens_per_sample) / device.flops_per_s,
        3.0 * passes * size.every_parameter * size.compute_nbytes / device.memory_bytes_per_s,
    )
    if device.host_bytes_per_s:  # the base comes from, and the update goes to, the memory beside the card
        products += size.parameters * (size.compute_nbytes + FP32) / device.host_bytes_per_s
    # Gradients are cleared, and added to an fp32 sum, once a micro-batch; a base is copied in once.
    walked: float = size.parameters * (passes * (2 * size.compute_nbytes + 2 * FP32) + FP32 + size.compute_nbytes)
    if train.sync.mode == "local-sgd":
        walked += steps * size.parameters * optimizer_passes(train.optimizer.kind) * FP32
    seconds = products + walked / device.memory_bytes_per_s
    fixed_ns = LEASE_NS + passes * BATCH_NS
    return round(slowness * (seconds * NS_PER_S + fixed_ns + encode_ns(device, size.parameters, train.compression)))


def measure_ns(device: Device, size: Size, samples: int, slowness: float = 1.0) -> int:
    """Held-out loss over so many samples: forward only."""
    passes = micro_batches(device, size, samples)
    products = max(
        forward_flops(size, samples * size.tokens_per_sample) / device.flops_per_s,
        passes * size.every_parameter * size.compute_nbytes / device.memory_bytes_per_s,
    )
    return round(slowness * (products * NS_PER_S + LEASE_NS + passes * BATCH_NS / 2))


def encode_ns(device: Device, elements: int, compression: Compression) -> int:
    """Codec and error feedback over a flat vector."""
    passes = _ENCODE_PASSES[compression.kind]
    if compression.kind != "none" and compression.feedback:
        passes += _FEEDBACK_PASSES
    return _walk_ns(device, passes * FP32 * elements)


# -- a shard ------------------------------------------------------------------------------------------------------


def stage_ns(device: Device, elements: int, compression: Compression) -> int:
    """Checking one update's part: decoded once, its norm taken."""
    return STAGE_NS + _walk_ns(device, (_DECODE_PASSES[compression.kind] + 1.0) * FP32 * elements)


def apply_ns(device: Device, elements: int, members: int, train: Train) -> int:
    """Merging `members` updates into so many elements, and the optimiser's step."""
    kind = _shard_optimizer(train)
    merged = members * (_DECODE_PASSES[train.compression.kind] + 3.0)
    return APPLY_NS + _walk_ns(device, (merged + optimizer_passes(kind)) * FP32 * elements)


def checkpoint_ns(device: Device, nbytes: int) -> int:
    """Writing, or reading back, so many bytes of a checkpoint."""
    return round(nbytes / min(device.memory_bytes_per_s, DISK_BYTES_PER_S) * NS_PER_S)


def optimizer_passes(kind: str) -> float:
    """Vectors read and written by one step: theta and update, and two for each of the optimiser's own."""
    return {"adamw": 11.0, "momentum": 6.0}.get(kind, 4.0)


def _shard_optimizer(train: Train) -> str:
    if train.sync.mode == "local-sgd":
        return "momentum" if train.outer.kind == "nesterov" else "sgd"
    if train.optimizer.kind == "sgd" and train.optimizer.momentum:
        return "momentum"
    return train.optimizer.kind


def _walk_ns(device: Device, nbytes: float) -> int:
    """Through the memory where updates and shards live, which is never a card's own."""
    return round(nbytes / (device.host_bytes_per_s or device.memory_bytes_per_s) * NS_PER_S)


# -- bytes --------------------------------------------------------------------------------------------------------


def pull_nbytes(elements: int, *, half: bool = False) -> int:
    """One version on its way to a worker: fp32, or bf16 where the worker rounds it anyway."""
    return elements * (2 if half else FP32)


def half_pulls(size: Size, train: Train) -> bool:
    """Whether bases travel in bf16: the network computes in it, and takes one step."""
    return size.compute_nbytes == 2 and train.sync.mode != "local-sgd"


def push_nbytes(compression: Compression, block_numels: Iterable[int]) -> int:
    """One update's part on its way to a shard: exactly what the codecs write for these blocks."""
    return sum(block_nbytes(compression, n) for n in block_numels)


def block_nbytes(compression: Compression, n: int) -> int:
    """Payload bytes of a block of n elements, as `compression` makes them."""
    groups = ceil(n / _CODEC_GROUP)
    match compression.kind:
        case "none":
            return FP32 * n
        case "fp16":
            return 4 * groups + 2 * n
        case "int8":
            return 4 * groups + n
        case "topk":
            whole, rest = divmod(n, _TOPK_CHUNK)
            nbytes = _topk_nbytes(whole, ceil(compression.density * _TOPK_CHUNK)) if whole else 0
            return nbytes + (_topk_nbytes(1, ceil(compression.density * rest)) if rest else 0)


def _topk_nbytes(rows: int, kept: int) -> int:
    """A bf16 scale a chunk; 12 bits of place and 8 of value for each that is kept."""
    return 2 * rows + 3 * ceil(rows * kept / 2) + rows * kept


def state_slots(train: Train) -> int:
    """Vectors that the shards' optimiser keeps beside the parameters."""
    return {"adamw": 2, "momentum": 1}.get(_shard_optimizer(train), 0)


def checkpoint_nbytes(elements: int, train: Train) -> int:
    """Parameters and optimiser state: 12 bytes a parameter with AdamW."""
    return elements * FP32 * (1 + state_slots(train))


# -- memory -------------------------------------------------------------------------------------------------------


def worker_nbytes(size: Size, train: Train, context_tokens: int = 0) -> int:
    """What a worker's engine needs at least: with one sequence of `context_tokens` at a time."""
    n, d = size.parameters, size.compute_nbytes
    model = size.every_parameter * d + n * d  # weights and gradients
    base = d if half_pulls(size, train) else FP32
    flat = n * (2 * FP32 + 2 * base + FP32)  # initial, sum; two bases; the update
    flat += train.sync.in_flight * push_nbytes(train.compression, [n])
    if train.compression.kind != "none" and train.compression.feedback:
        flat += n * FP32
    if train.sync.mode == "local-sgd":
        flat += n * FP32 * (2 + {"adamw": 2}.get(train.optimizer.kind, int(train.optimizer.momentum > 0)))
    return PROCESS_NBYTES + model + flat + activation_nbytes(size, context_tokens or size.tokens_per_sample)


def activation_nbytes(size: Size, tokens: int) -> int:
    """Kept for the backward pass: 34 bytes a token, layer and unit of width in two-byte arithmetic (Korthikanti et al.
    2022, without its attention term); width and depth from the parameters, as decoders of the usual shape have them.
    """
    width: float = max(1.0, (8.0 * size.every_parameter) ** (1 / 3))
    depth = size.every_parameter / (12 * width**2)
    return round(17 * size.compute_nbytes * depth * width * tokens)


def shard_nbytes(elements: int, train: Train, members: int) -> int:
    """What a shard's engine needs: parameters, state, a pinned version, staged parts of `members` updates, a
    checkpoint being written, scratch.
    """
    held = checkpoint_nbytes(elements, train)
    staged = (members * train.sync.in_flight) * push_nbytes(train.compression, [elements])
    scratch = 2 * FP32 * min(elements, 1 << 20)
    return SHARD_PROCESS_NBYTES + 2 * held + FP32 * elements + staged + scratch


def size_of(spec: JobSpec, parameters: int, frozen: int, tokens_per_sample: int, device: Device) -> Size:
    """A job's model on a device: `model.dtype` auto is what the device trains in."""
    dtype: Literal["fp32", "bf16"] = device.precision if spec.model.dtype == "auto" else spec.model.dtype
    return Size(parameters, frozen, tokens_per_sample, 2 if dtype == "bf16" else FP32)


# -- power and money ----------------------------------------------------------------------------------------------


def energy_j(device: Device, busy_ns: int, span_ns: int) -> float:
    """Of a machine that was there for `span_ns` and computed for `busy_ns` of it."""
    busy = min(busy_ns, span_ns)
    return (device.watts * busy + device.idle_watts * (span_ns - busy)) / NS_PER_S


def price_usd(device: Device, span_ns: int, *, spot: bool = False) -> float:
    """Rent of a machine for as long as it is there, busy or not."""
    return device.usd_per_h * (SPOT_SHARE if spot else 1.0) * span_ns / NS_PER_H
