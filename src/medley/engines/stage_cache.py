"""Keys and values of the requests that a stage serves, and attention of ragged rows over them.

Each request has, for each layer, one contiguous buffer of keys and one of values, grown by `STEP` tokens; layers come
and go on their own. Nothing is padded to the longest request and nothing is gathered from pages: a CPU's kernels read a
request's rows where they lie.
transformers' attention modules call `ragged_attention` by the name `RAGGED`.

Shapes: H heads, G heads of keys and values, T tokens of all rows, n of one row, L positions so far, D width of a head.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface

from medley.models.kernels.layer import Place

RAGGED = "medley_ragged"
STEP = 256


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


@dataclass(slots=True)
class LayerCache:
    """One request's keys and values in one layer: `length` positions held, in buffers of at least as many."""

    keys_GLD: Tensor
    values_GLD: Tensor
    length: int = 0

    @property
    def capacity(self) -> int:
        return self.keys_GLD.shape[1]

    def write(self, start: int, key_GnD: Tensor, value_GnD: Tensor) -> None:
        """Positions `start` and on; what is held is for `settle` to say."""
        end = start + key_GnD.shape[1]
        self.keys_GLD[:, start:end] = key_GnD
        self.values_GLD[:, start:end] = value_GnD

    def read(self, begin: int, end: int) -> tuple[Tensor, Tensor]:
        """Views of keys and values [G, end - begin, D]."""
        return self.keys_GLD[:, begin:end], self.values_GLD[:, begin:end]


class RequestCache:
    """One request's keys and values in the layers it has met."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.nbytes = 0
        self.layers: dict[int, LayerCache] = {}

    def held(self, layers: Iterable[int]) -> int:
        """Positions that every one of these layers holds."""
        return min(self.layers[layer].length if layer in self.layers else 0 for layer in layers)

    def grown_nbytes(self, tokens: int, layers: Iterable[int]) -> int:
        """Bytes more than now, if these layers had to hold so many tokens."""
        wanted = _rounded(tokens)
        capacities = (self.layers[layer].capacity if layer in self.layers else 0 for layer in layers)
        return sum(max(0, wanted - capacity) for capacity in capacities) * self.shape.token_nbytes

    def reserve(self, tokens: int, layers: Iterable[int]) -> None:
        """Makes room for so many tokens in these layers."""
        capacity = _rounded(tokens)
        for layer in layers:
            held = self.layers.get(layer)
            if held is not None and held.capacity >= capacity:
                continue
            larger = LayerCache(self._empty(capacity), self._empty(capacity))
            if held is not None:
                larger.write(0, *held.read(0, held.length))
                larger.length = held.length
            self.nbytes += (capacity - (held.capacity if held else 0)) * self.shape.token_nbytes
            self.layers[layer] = larger

    def settle(self, length: int, layers: Iterable[int]) -> None:
        """From now on these layers hold so many positions."""
        for layer in layers:
            self.layers[layer].length = length

    def drop(self, layers: Iterable[int]) -> None:
        """Forgets all that these layers hold."""
        for layer in layers:
            held = self.layers.pop(layer, None)
            if held is not None:
                self.nbytes -= held.capacity * self.shape.token_nbytes

    def _empty(self, capacity: int) -> Tensor:
        shape = self.shape
        return torch.empty(shape.groups, capacity, shape.width, dtype=shape.dtype, device=shape.device)


def _rounded(tokens: int) -> int:
    return -(-tokens // STEP) * STEP


@dataclass(frozen=True, slots=True)
class Turn:
    """A row's place among the tokens of a pass: [place, place + count) stand at positions `start` and on."""

    cache: RequestCache
    place: int
    start: int
    count: int


def places_of(turns: Sequence[Turn], layer: int) -> list[Place]:
    """Of every token, in order, in this layer's buffers."""
    places = []
    for turn in turns:
        held = turn.cache.layers[layer]
        buffers = held.keys_GLD.data_ptr(), held.values_GLD.data_ptr(), held.capacity
        places += [Place(*buffers, position) for position in range(turn.start, turn.start + turn.count)]
    return places


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
    query_HTD, key_GTD, value_GTD = query_1HTD[0], key_1GTD[0], value_1GTD[0]
    out = []
    for turn in turns:
        if len(turns) == 1:
            query, key, value = query_HTD, key_GTD, value_GTD
        else:
            at = slice(turn.place, turn.place + turn.count)
            query, key, value = query_HTD[:, at], key_GTD[:, at], value_GTD[:, at]
        held = turn.cache.layers[layer]
        held.write(turn.start, key, value)
        out.append(_attend(query, turn, held, scaling, sliding_window))
    return (out[0] if len(out) == 1 else torch.cat(out))[None], None


def _attend(query_HnD: Tensor, turn: Turn, held: LayerCache, scaling: float | None, window: int | None) -> Tensor:
    """[n, H, D]. The queries of heads that share keys lie beside each other, so that keys are never repeated."""
    end = turn.start + turn.count
    begin = max(0, turn.start - window + 1) if window else 0
    key_GLD, value_GLD = held.read(begin, end)
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
