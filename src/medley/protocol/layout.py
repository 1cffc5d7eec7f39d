"""How a model's trainable tensors become one flat fp32 vector, and how that vector is cut into blocks.

The vector is the tensors in `named_parameters()` order, flattened and joined. A block is a slice inside one tensor
of at most `block_elements`; blocks are what shards own, codecs encode and checkpoints store. Both ends of every
transfer compare `fingerprint` first, so two machines that disagree about a model find out before they exchange a
number.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One trainable tensor. `placement_key` groups tensors that must share a shard (the A and B of one adapter)."""

    name: str
    shape: tuple[int, ...]
    placement_key: str = ""

    @property
    def numel(self) -> int:
        return prod(self.shape)


@dataclass(frozen=True, slots=True)
class Block:
    """Elements [offset, offset + numel) of the flat vector, all inside tensor number `tensor`."""

    index: int
    tensor: int
    offset: int
    numel: int
    placement_key: str


@dataclass(frozen=True, slots=True)
class Layout:
    tensors: tuple[TensorSpec, ...]
    blocks: tuple[Block, ...]
    numel: int
    fingerprint: str


def make_layout(tensors: Iterable[TensorSpec], block_elements: int) -> Layout:
    """Cut `tensors` into blocks of at most `block_elements` elements."""
    specs = tuple(tensors)
    blocks: list[Block] = []
    offset = 0
    for number, spec in enumerate(specs):
        for start in range(0, spec.numel, block_elements):
            size = min(block_elements, spec.numel - start)
            key = spec.placement_key or f"{spec.name}:{start}"
            blocks.append(Block(len(blocks), number, offset + start, size, key))
        offset += spec.numel
    return Layout(specs, tuple(blocks), offset, _fingerprint(specs, block_elements))


def _fingerprint(specs: Sequence[TensorSpec], block_elements: int) -> str:
    text = "\n".join(f"{s.name} {s.shape} {s.placement_key}" for s in specs)
    return hashlib.sha256(f"{block_elements}\n{text}".encode()).hexdigest()
