"""Products of few tokens with many weights, and the order in which their weights lie.

A stream's speed is that of reading weights. torch's kernels read them for few tokens at a third to two thirds of what
the memory gives, these at nine tenths. A token's numbers do not depend on the tokens beside it.

Shapes: M tokens, N rows, P rows padded to a multiple of 64, K columns, G groups of 64 columns.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from medley.models.kernels.build import library

ROWS = 64  # of int8 and int4 weights lie side by side
GROUP = 64  # int4 weights with one scale and one offset; 32 would be a little closer, and a tenth more bytes
KINDS = {"bf16": 0, "int8": 1, "int4": 2}
COLUMNS = {"bf16": 32, "int8": 16, "int4": GROUP}  # K is a multiple of these
INT8_COLUMNS = 65_536  # at most: 255 times 128 times more would not fit into int32


class Linear(ctypes.Structure):
    """What C sees of a layer's weights."""

    _fields_ = (
        ("kind", ctypes.c_long),
        ("rows", ctypes.c_long),
        ("columns", ctypes.c_long),
        ("weights", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
    )


@dataclass(frozen=True, slots=True)
class Weights:
    """Of one linear layer, as its kernel reads them: bf16 [N, K]; or what `pack_int8` or `pack_int4` made."""

    kind: str
    rows: int
    columns: int
    packed: Tensor
    scales: Tensor | None
    bias_N: Tensor | None

    def described(self) -> Linear:
        """Good for as long as these weights are."""
        return Linear(
            KINDS[self.kind],
            self.rows,
            self.columns,
            self.packed.data_ptr(),
            _address(self.scales),
            _address(self.bias_N),
        )


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


@dataclass(frozen=True, slots=True)
class Kernels:
    """The compiled functions."""

    library: ctypes.CDLL

    def product(self, described: Linear, x_MK: Tensor) -> Tensor:
        """[M, N] of bf16, from contiguous bf16. Raises ValueError for others: C would read what lies behind them."""
        tokens, columns = x_MK.shape
        if columns != described.columns or x_MK.dtype != torch.bfloat16 or not x_MK.is_contiguous():
            raise ValueError(f"tokens of {columns} {x_MK.dtype} meet weights for {described.columns} torch.bfloat16")
        out_MN = x_MK.new_empty(tokens, described.rows)
        threads = torch.get_num_threads()
        if self.library.medley_product(ctypes.byref(described), x_MK.data_ptr(), out_MN.data_ptr(), tokens, threads):
            raise MemoryError(f"no room to lay {tokens} tokens side by side")
        return out_MN

    def widened(self, described: Linear, rows: range) -> Tensor:
        """int8 or int4 weights of these rows (from and up to multiples of 64) in bf16, [rows, K], for products of many
        tokens: of int8 whole numbers that the scales are still to be multiplied with, of int4 the weights.
        """
        out_PK = torch.empty(len(rows), described.columns, dtype=torch.bfloat16)
        threads = torch.get_num_threads()
        self.library.medley_widen(ctypes.byref(described), out_PK.data_ptr(), rows.start, rows.stop, threads)
        return out_PK


@cache
def kernels() -> Kernels | None:
    """None where there are none: `build.missing` says why."""
    found = library()
    if found is None:
        return None
    number, pointer = ctypes.c_long, ctypes.c_void_p
    found.medley_product.argtypes = [ctypes.POINTER(Linear), pointer, pointer, number, ctypes.c_int]
    found.medley_widen.argtypes = [ctypes.POINTER(Linear), pointer, number, number, ctypes.c_int]
    found.medley_product.restype, found.medley_widen.restype = ctypes.c_int, None
    return Kernels(found)


def takes(kind: str, columns: int) -> bool:
    """Whether there are kernels, and for rows of so many weights."""
    fits = kind in KINDS and columns % COLUMNS[kind] == 0 and (kind != "int8" or columns <= INT8_COLUMNS)
    return fits and kernels() is not None


def pack_int8(quantised_PK: Tensor) -> Tensor:
    """int8 weights as the kernel reads them: [P / 64, K / 4, 64, 4], each as an unsigned byte around 128."""
    unsigned_PK = (quantised_PK.to(torch.int16) + 128).to(torch.uint8)
    return unsigned_PK.unflatten(1, (-1, 4)).unflatten(0, (-1, ROWS)).transpose(1, 2).contiguous()


def pack_int4(nibbles_PK: Tensor, scale_PG: Tensor, offset_PG: Tensor) -> tuple[Tensor, Tensor]:
    """Values q of 0 to 15 for weights (q - 8) scale + offset as the kernel reads them, [P / 64, K / 8, 64, 4] with two
    in a byte, and their scales and offsets, [P / 64, G, 2, 64].
    """
    first_P84, second_P84 = nibbles_PK.to(torch.uint8).unflatten(1, (-1, 2, 4)).unbind(2)
    bytes_P84 = first_P84 | second_P84 << 4
    scales_P2G = torch.stack([scale_PG, offset_PG], 1)
    return (
        bytes_P84.unflatten(0, (-1, ROWS)).transpose(1, 2).contiguous(),
        scales_P2G.unflatten(0, (-1, ROWS)).permute(0, 3, 2, 1).contiguous(),
    )
