"""A decoder layer of the Llama kind over few tokens in one call: what `layer.c` does, and for which layers.

Between the products of one token lies little work, but asking torch for it piece by piece takes as long as a third of
the products. Numbers are those of the layer done in pieces: the same sums, rounded in bf16 less often.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from medley.models.kernels.build import library
from medley.models.kernels.products import Linear

TOKENS = 32  # at once; for more torch is faster
LANES = 32  # of which a head's width and a layer's are multiples
WIDEST, SHARED = 256, 16  # width of a head, and heads that share keys, at most


class _Layer(ctypes.Structure):
    _fields_ = (
        *((name, Linear) for name in ("attend", "attended", "widen", "narrow")),
        *((name, ctypes.c_void_p) for name in ("before", "between", "heads_norm")),
        *((name, ctypes.c_long) for name in ("width", "inner", "heads", "groups", "head_width", "window")),
        *((name, ctypes.c_float) for name in ("eps", "scaling")),
    )


class Place(ctypes.Structure):
    """Where one token's keys and values go: its request's buffers [groups, capacity, head width] of this layer."""

    _fields_ = (
        ("keys", ctypes.c_void_p),
        ("values", ctypes.c_void_p),
        ("capacity", ctypes.c_long),
        ("position", ctypes.c_long),
    )


@dataclass(frozen=True, slots=True)
class Shape:
    """Of a layer. `window`: positions that a token sees, 0 for all."""

    width: int
    inner: int
    heads: int
    groups: int
    head_width: int
    window: int
    eps: float
    scaling: float


@cache
def _function() -> ctypes._NamedFuncPointer | None:
    found = library()
    if found is None:
        return None
    pointer = ctypes.c_void_p
    found.medley_layer.argtypes = [
        ctypes.POINTER(_Layer), *[pointer] * 3, ctypes.POINTER(Place), ctypes.c_long, ctypes.c_int
    ]  # fmt: skip
    found.medley_layer.restype = ctypes.c_int
    return found.medley_layer


def can_be_whole(shape: Shape) -> bool:
    lanes = shape.width % LANES == shape.inner % LANES == shape.head_width % LANES == 0
    even = shape.heads % shape.groups == 0 and shape.window >= 0
    few = shape.head_width <= WIDEST and shape.heads <= SHARED * shape.groups
    return lanes and even and few and _function() is not None


class WholeLayer:
    """Holds addresses: what it was given must live as long, and stay where it is.

    `linears`: attend, attended, widen and narrow. Weights of norms are contiguous bf16.
    """

    def __init__(
        self, shape: Shape, linears: Sequence[Linear], before_W: Tensor, between_W: Tensor, heads_AD: Tensor | None
    ):
        found = _function()
        if found is None:
            raise RuntimeError("there are no kernels here")
        self._function = found
        norms = before_W.data_ptr(), between_W.data_ptr(), None if heads_AD is None else heads_AD.data_ptr()
        sizes = shape.width, shape.inner, shape.heads, shape.groups, shape.head_width, shape.window
        self._shape = shape
        self._layer = _Layer(*linears, *norms, *sizes, shape.eps, shape.scaling)

    def __call__(self, hidden_TW: Tensor, cos_TD: Tensor, sin_TD: Tensor, places: Sequence[Place]) -> Tensor:
        """[T, W]. All are contiguous bf16; `sin_TD` has the sign that each half takes. Keys and values are written.

        Raises ValueError for others: C would read whatever lies behind them.
        """
        self._check(hidden_TW, cos_TD, sin_TD, len(places))
        out_TW = hidden_TW.clone(memory_format=torch.contiguous_format)
        table = (Place * len(places))(*places)
        given = out_TW.data_ptr(), cos_TD.data_ptr(), sin_TD.data_ptr(), table, len(places), torch.get_num_threads()
        if self._function(self._layer, *given):
            raise MemoryError(f"no room for {len(places)} tokens in a layer")
        return out_TW

    def _check(self, hidden_TW: Tensor, cos_TD: Tensor, sin_TD: Tensor, tokens: int) -> None:
        turned = tokens * self._shape.head_width
        whole = hidden_TW.dtype == cos_TD.dtype == sin_TD.dtype == torch.bfloat16
        whole = whole and cos_TD.is_contiguous() and sin_TD.is_contiguous()
        if (
            not whole
            or hidden_TW.shape != (tokens, self._shape.width)
            or not cos_TD.numel() == sin_TD.numel() == turned
        ):
            raise ValueError(f"{list(hidden_TW.shape)}, turned by {list(cos_TD.shape)}, is not what this layer takes")
