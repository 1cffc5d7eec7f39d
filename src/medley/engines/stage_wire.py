"""Tensors of a stage as the raw bytes that follow a word (`protocol/stages/words.py`); little-endian, row by row.

Nothing is copied on the way out where the engine computes in the wire's type already. What comes in is copied once,
into memory of its own: bytes behind a word lie on no boundary. Sizes are checked before anything is allocated.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from medley.engines.sampling import Sampling
from medley.engines.stage_refusals import Refused
from medley.protocol.stages.words import Opening, Shadow, WireType

TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
NAMES: dict[torch.dtype, WireType] = {torch.float32: "fp32", torch.bfloat16: "bf16"}


def encode_hidden(hidden_TW: Tensor, wire: WireType) -> list[memoryview]:
    """Hidden states as `Pass` says. int8: symmetric, by the largest value of each token."""
    if wire != "int8":
        return [_bytes(hidden_TW.to(_type(wire)))]
    scale_T = hidden_TW.abs().amax(1).float() / 127
    steps_TW = (hidden_TW.float() / scale_T.clamp(min=1e-30)[:, None]).round_().to(torch.int8)
    return [_bytes(steps_TW), _bytes(scale_T)]


def decode_hidden(body: memoryview, tokens: int, width: int, wire: WireType, dtype: torch.dtype) -> Tensor:
    """[tokens, width] in `dtype`. Raises Refused."""
    if wire != "int8":
        return _tensor(body, (tokens, width), _type(wire)).to(dtype)
    if body.nbytes != tokens * (width + 4):
        raise Refused(f"hidden states of {tokens} tokens take {tokens * (width + 4)} bytes, {body.nbytes} came")
    steps_TW = _tensor(body[: tokens * width], (tokens, width), torch.int8)
    scale_T = _tensor(body[tokens * width :], (tokens,), torch.float32)
    return (steps_TW.float() * scale_T[:, None]).to(dtype)


def encode_tokens(tokens: list[int]) -> list[memoryview]:
    return [_bytes(torch.tensor(tokens, dtype=torch.int64).to(torch.uint32))]


def decode_tokens(body: memoryview, tokens: int) -> Tensor:
    """[tokens], int64. Raises Refused."""
    return _tensor(body, (tokens,), torch.uint32).to(torch.int64)


def encode_kv(kv: Tensor) -> tuple[WireType, list[memoryview]]:
    """What `StageEngine.export_kv` gave, in the type that it has."""
    return NAMES[kv.dtype], [_bytes(kv)]


def decode_kv(word: Shadow, body: memoryview) -> Tensor:
    """[layers, 2, G, count, D], as `StageEngine.import_kv` takes it. Raises Refused."""
    sizes = (word.end - word.first, 2, word.groups, word.count, word.width)
    if min(sizes) < 1:
        raise Refused(f"keys and values of the sizes {list(sizes)}", word.request)
    return _tensor(body, sizes, _type(word.wire))


def sampling_of(opening: Opening) -> Sampling:
    return Sampling(
        temperature=opening.temperature,
        top_p=opening.top_p,
        top_k=opening.top_k,
        seed=opening.seed,
        choice=opening.choice,
        logprobs=None if opening.logprobs < 0 else opening.logprobs,
    )


def _type(wire: WireType) -> torch.dtype:
    if wire not in TYPES:
        raise Refused(f"no tensor comes as '{wire}'")
    return TYPES[wire]


def _bytes(values: Tensor) -> memoryview:
    return values.contiguous().view(torch.uint8).numpy().data.cast("B")


def _tensor(body: memoryview, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    nbytes = math.prod(shape) * dtype.itemsize
    if body.nbytes != nbytes:
        raise Refused(f"a tensor of the shape {list(shape)} takes {nbytes} bytes, {body.nbytes} came")
    made = torch.empty(shape, dtype=dtype)
    _bytes(made)[:] = body.cast("B")
    return made
