"""What a codec is, and the few byte-level steps that all of them share.

A codec turns n fp32 values into exactly `nbytes(n)` bytes and back. Multi-byte numbers are little-endian on
the wire, which is the order of every processor we run on. Payloads are hostile until decoded: a wrong length,
an impossible scale or index raises FrameError before any element is written.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from medley.protocol.errors import FrameError

Payload = bytes | bytearray | memoryview


class NonFinite(FrameError):
    """A payload that says NaN or infinity where a scale should be: its sender's update had diverged."""


class Codec(Protocol):
    @property
    def name(self) -> str: ...

    def nbytes(self, n: int) -> int:
        """Exact payload size in bytes for n elements."""
        ...

    def encode(self, x: Tensor) -> Tensor:
        """uint8 [nbytes(n)] for fp32 [n]; never aliases `x`. Values that are not finite survive as such."""
        ...

    def decode(self, payload: Payload, n: int, out: Tensor | None = None) -> Tensor:
        """fp32 [n], written into `out` when given. Raises FrameError; NonFinite for a diverged sender."""
        ...


def bytes_of(x: Tensor) -> memoryview:
    """The bytes of a contiguous tensor, without a copy; the view keeps the tensor alive."""
    return memoryview(x.numpy().data).cast("B")


def checked(payload: Payload, nbytes: int, codec: str) -> memoryview:
    """`payload` as bytes, after its length was compared with what the codec says it must be."""
    view = memoryview(payload)
    if view.nbytes != nbytes:
        raise FrameError(f"{codec} payload has {view.nbytes} bytes where {nbytes} were expected")
    return view.cast("B")


def tensor_of(view: memoryview) -> Tensor:
    """uint8 copy of `view`: aligned, writable, and independent of the buffer that a socket lent."""
    raw = torch.empty(view.nbytes, dtype=torch.uint8)
    bytes_of(raw)[:] = view
    return raw


def output(n: int, out: Tensor | None) -> Tensor:
    """`out`, or room for n values."""
    return torch.empty(n, dtype=torch.float32) if out is None else out


def check_scales(scales: Tensor, codec: str) -> None:
    """Refuse scales no encoder of ours writes: not finite (NonFinite) or negative."""
    if not torch.isfinite(scales).all():
        raise NonFinite(f"{codec} payload has a scale that is not finite")
    if (scales < 0).any():
        raise FrameError(f"{codec} payload has a negative scale")
