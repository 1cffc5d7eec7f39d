"""Tensors drawn at random instead of read: for measuring a machine, and for benches, before anything is fetched.

A tensor is a function of its name and the seed, so whoever draws it has the same: a model split over processes is the
unsplit one. The numbers repeat within a tensor, because drawing a billion of them takes longer than measuring does.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping

import torch
from torch import Tensor

from medley.models.weightfiles import Stored
from medley.protocol.errors import UserError

PERIOD = 1_000_003  # a prime, so that no two rows of a matrix are alike
SPREAD = 0.02


class RandomTensors:
    """`Tensors` of these shapes (`Parts.shapes` has those of a model). Scales of norms lie around one."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], seed: int) -> None:
        self._shapes, self._seed = shapes, seed

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._shapes)

    def find(self, *names: str) -> Stored:
        name = next((one for one in names if one in self._shapes), "")
        if not name:
            raise UserError(f"the model has no tensor '{names[0]}'")
        return Stored(name, torch.float32, self._shapes[name])

    def read(self, stored: Stored, dtype: torch.dtype) -> Tensor:
        source = torch.Generator().manual_seed(zlib.crc32(f"{self._seed} {stored.name}".encode()))
        count = math.prod(stored.shape)
        middle = 1.0 if len(stored.shape) == 1 and stored.name.endswith("weight") else 0.0
        some = torch.empty(min(count, PERIOD)).normal_(middle, SPREAD, generator=source).to(dtype)
        made = torch.empty(count, dtype=dtype)
        for begin in range(0, count, PERIOD):
            made[begin : begin + PERIOD] = some[: count - begin]
        return made.reshape(stored.shape)
