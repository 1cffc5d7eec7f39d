"""Whether a job's parameters fit through every limit on their way: control messages, tensor plane, checkpoint files.

The limits stand apart where they protect something; here they meet, as soon as the layout is known, so that a job
that cannot be saved or sent is refused before it computes anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

from medley.policies.placement import SLACK, assign_blocks
from medley.protocol.layout import Layout, TensorSpec

BLOCKS_A_SHARD = 5_000  # a checkpoint file holds 20,000 tensors, and AdamW four of each block
PART_NBYTES = 8 << 30  # the largest object that the tensor plane carries
ELEMENT_NBYTES = 12  # fp32 parameters and two moments
SHARDS_MAX = 64
BLOCK_ELEMENTS_MAX = 1 << 28
ADAPTERS = "model.lora.rank to train adapters only, or choose a smaller model"


def refusal(layout: Layout, block_elements: int, shards: int) -> str:
    """The sentence that says which limit is broken and which values would do; '' where everything fits."""
    owned = assign_blocks(layout.blocks, dict.fromkeys(range(shards), 1.0))
    most = max((len(indices) for indices in owned.values()), default=0)
    nbytes = max((_numel(layout, indices) for indices in owned.values()), default=0) * ELEMENT_NBYTES
    if most > BLOCKS_A_SHARD:
        return (
            f"placement.block_elements is {block_elements}, which cuts the parameters into {len(layout.blocks)} "
            f"blocks, {most} on one shard, but a shard holds at most {BLOCKS_A_SHARD}: "
            f"set {_fewer(layout.tensors, block_elements, shards)}"
        )
    if nbytes > PART_NBYTES:
        return (
            f"placement.shards is {shards}, so a shard's checkpoint has {nbytes / 2**30:.1f} GiB, but at most "
            f"{PART_NBYTES >> 30} can be sent: set {_smaller(layout.numel, shards)}"
        )
    return ""


def block_count(tensors: Sequence[TensorSpec], block_elements: int) -> int:
    """How many blocks `make_layout` would cut."""
    return sum(ceil(spec.numel / block_elements) for spec in tensors)


def _numel(layout: Layout, indices: Sequence[int]) -> int:
    return sum(layout.blocks[i].numel for i in indices)


def _fewer(tensors: Sequence[TensorSpec], block_elements: int, shards: int) -> str:
    """Block sizes and shards that make few enough blocks, with room for shards that are not quite even."""
    room = BLOCKS_A_SHARD / (1 + 2 * SLACK)
    said = []
    larger = 1 << block_elements.bit_length()
    while larger < BLOCK_ELEMENTS_MAX and block_count(tensors, larger) > room * shards:
        larger *= 2
    if block_count(tensors, larger) <= room * shards:
        said.append(f"placement.block_elements to {larger}")
    enough = ceil(block_count(tensors, block_elements) / room)
    if shards < enough <= SHARDS_MAX:
        said.append(f"placement.shards to {enough}")
    return " or ".join(said) or ADAPTERS


def _smaller(numel: int, shards: int) -> str:
    enough = max(shards + 1, ceil(numel * ELEMENT_NBYTES * (1 + 2 * SLACK) / PART_NBYTES))
    return f"placement.shards to {enough}" if enough <= SHARDS_MAX else ADAPTERS
