"""A shard's parameters as bytes: what a pull sends, what a checkpoint part holds, and back again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import load_file

from medley.engines.shard import ShardEngine
from medley.engines.tensorfile import write_tensors
from medley.protocol.layout import Layout


class Reader:
    """Versions for pulls. bf16 copies are made once a version, however many workers ask."""

    def __init__(self, engine: ShardEngine, blocks: Sequence[int]) -> None:
        self._engine = engine
        self._blocks = sorted(blocks)
        self._half: tuple[int, list[torch.Tensor]] = (-1, [])

    def read(self, version: int, half: bool) -> list[memoryview]:
        """All blocks in rising index, fp32 or bf16. Raises KeyError for a version that is gone."""
        tensors = [self._engine.read(version, index) for index in self._blocks]
        if half:
            if self._half[0] != version:
                self._half = (version, [t.to(torch.bfloat16) for t in tensors])
            tensors = self._half[1]
        return [memoryview(t.view(torch.uint8).numpy().data) for t in tensors]

    def forget(self) -> None:
        """Versions start anew: a rollback may use a number again."""
        self._half = (-1, [])


def load_part(engine: ShardEngine, version: int, content: bytes) -> None:
    """Begin at a checkpoint part. Raises ValueError when it does not fit."""
    tensors = load_tensors(content)
    params = {int(name.removeprefix("block.")): t for name, t in tensors.items() if name.count(".") == 1}
    engine.load(version, params, {name: t for name, t in tensors.items() if name.count(".") > 1})


class Cut:
    """One consistent cut of a shard, taken in order with the commits and written beside them."""

    def __init__(self, engine: ShardEngine, version: int) -> None:
        """Raises KeyError when the version is gone."""
        params, state = engine.state_for_checkpoint(version)
        self._tensors = {**params, **state}

    def write(self, path: Path) -> None:
        """Once; each tensor is let go when it is written. Raises OSError when there is no room."""
        write_tensors(path, self._tensors)


def write_blocks(path: Path, layout: Layout, flat: torch.Tensor, indices: Sequence[int]) -> None:
    """Blocks of a flat vector as a part of checkpoint 0."""
    blocks = [layout.blocks[i] for i in indices]
    write_tensors(path, {f"block.{b.index}": flat[b.offset : b.offset + b.numel] for b in blocks})


def join_parts(layout: Layout, paths: Sequence[Path]) -> torch.Tensor:
    """The flat fp32 vector [numel] of all parts of one checkpoint."""
    flat = torch.empty(layout.numel, dtype=torch.float32)
    for path in paths:
        for name, tensor in load_file(path).items():
            if name.count(".") == 1:
                block = layout.blocks[int(name.removeprefix("block."))]
                flat[block.offset : block.offset + block.numel] = tensor
    return flat
