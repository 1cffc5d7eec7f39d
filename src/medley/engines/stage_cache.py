"""Keys and values of the requests that a stage serves, and attention of ragged rows over them.

Each request has, for each layer, one contiguous buffer of keys and one of values, grown by `STEP` tokens. Nothing is
padded to the longest request and nothing is gathered from pages: a CPU's kernels read a request's rows where they lie.
transformers' attention modules call `ragged_attention` by the name `RAGGED`.

Shapes: H heads, G heads of keys and values, T tokens of all rows, n of one row, L positions so far, D width of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface

from medley.protocol.errors import MedleyError

RAGGED = "medley_ragged"
STEP = 256


class NoRoom(MedleyError):
    """The limit of KV bytes would be passed; nothing has changed."""


class Gap(MedleyError):
    """A row begins beyond what this stage holds of its request; nothing has changed."""


@dataclass(frozen=True, slots=True)
class Shape:
    """Of one layer's cache."""

    groups: int  # G
    width: int  # D
    dtype: torch.dtype
    device: torch.device

    @property
    def token_nbytes(self) -> int:
        return 2 * self.groups * self.width * self.dtype.itemsize


class RequestCache:
    """One request's keys and values in layers [first, end)."""

    def __init__(self, shape: Shape, first: int, end: int) -> None:
        self.shape, self.first, self.end = shape, first, end
        self.capacity = 0
        self._lengths = [0] * (end - first)
        self._keys_GLD = [self._empty()] * (end - first)
        self._values_GLD = list(self._keys_GLD)

    @property
    def length(self) -> int:
        """Positions that every layer holds."""
        return min(self._lengths)

    @property
    def nbytes(self) -> int:
        return self.capacity * self.shape.token_nbytes * (self.end - self.first)

    def grown_nbytes(self, tokens: int) -> int:
        """Bytes more than now, if it had to hold so many tokens."""
        wanted = -(-tokens // STEP) * STEP
        return max(0, wanted - self.capacity) * self.shape.token_nbytes * (self.end - self.first)

    def reserve(self, tokens: int) -> None:
        """Makes room for so many tokens in every layer."""
        if tokens <= self.capacity:
            return
        self.capacity = -(-tokens // STEP) * STEP
        for place, length in enumerate(self._lengths):
            for held in (self._keys_GLD, self._values_GLD):
                larger = self._empty()
                larger[:, :length] = held[place][:, :length]
                held[place] = larger

    def _empty(self) -> Tensor:
        shape = self.shape
        return torch.empty(shape.groups, self.capacity, shape.width, dtype=shape.dtype, device=shape.device)

    def write(self, layer: int, start: int, key_GnD: Tensor, value_GnD: Tensor) -> None:
        """Positions `start` and on; whatever lay beyond is forgotten once `settle` says so."""
        end = start + key_GnD.shape[1]
        self._keys_GLD[layer - self.first][:, start:end] = key_GnD
        self._values_GLD[layer - self.first][:, start:end] = value_GnD

    def read(self, layer: int, begin: int, end: int) -> tuple[Tensor, Tensor]:
        """Views of keys and values [G, end - begin, D]."""
        place = layer - self.first
        return self._keys_GLD[place][:, begin:end], self._values_GLD[place][:, begin:end]

    def settle(self, length: int, layers: range | None = None) -> None:
        """From now on so many positions are held (in these layers)."""
        for layer in layers or range(self.first, self.end):
            self._lengths[layer - self.first] = length

    def held(self, layer: int) -> int:
        return self._lengths[layer - self.first]


@dataclass(frozen=True, slots=True)
class Turn:
    """A row's place among the tokens of a pass: [place, place + count) stand at positions `start` and on."""

    cache: RequestCache
    place: int
    start: int
    count: int


def ragged_attention(
    module: nn.Module,
    query_1HTD: Tensor,
    key_1GTD: Tensor,
    value_1GTD: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    turns: Sequence[Turn] = (),
    **_: Any,
) -> tuple[Tensor, None]:
    """Output [1, T, H, D]; writes each row's keys and values into its request's cache first."""
    layer: int = module.layer_idx  # type: ignore[assignment]
    heads, width = query_1HTD.shape[1], query_1HTD.shape[3]
    out_THD = query_1HTD.new_empty(query_1HTD.shape[2], heads, width)
    for turn in turns:
        at = slice(turn.place, turn.place + turn.count)
        turn.cache.write(layer, turn.start, key_1GTD[0, :, at], value_1GTD[0, :, at])
        out_THD[at] = _attend(query_1HTD[0, :, at], turn, layer, scaling, sliding_window)
    return out_THD[None], None


def _attend(query_HnD: Tensor, turn: Turn, layer: int, scaling: float | None, window: int | None) -> Tensor:
    """[n, H, D]. The queries of heads that share keys lie beside each other, so that keys are never repeated."""
    end = turn.start + turn.count
    begin = max(0, turn.start - window + 1) if window else 0
    key_GLD, value_GLD = turn.cache.read(layer, begin, end)
    heads, count, width = query_HnD.shape
    groups = key_GLD.shape[0]
    query_GmD = query_HnD.reshape(groups, heads // groups * count, width)
    mask = None if count == 1 else _mask(turn, begin, window, heads // groups, query_HnD.device)
    done = functional.scaled_dot_product_attention(
        query_GmD[None], key_GLD[None], value_GLD[None], attn_mask=mask, scale=scaling
    )
    return done[0].reshape(heads, count, width).transpose(0, 1)


def _mask(turn: Turn, begin: int, window: int | None, repeats: int, device: torch.device) -> Tensor:
    """[m, L]: which positions each query may see."""
    rows_n1 = torch.arange(turn.start, turn.start + turn.count, device=device)[:, None]
    seen_L = torch.arange(begin, turn.start + turn.count, device=device)
    mask_nL = seen_L <= rows_n1
    if window:
        mask_nL &= seen_L > rows_n1 - window
    return mask_nL.repeat(repeats, 1)


AttentionInterface.register(RAGGED, ragged_attention)
