"""The largest magnitudes of each chunk of 4096: about a hundredth of the bytes at a density of 1/64.

Per chunk: a bf16 scale, 12-bit offsets in rising order, and int8 values (SparseLoCo, arXiv 2508.15706, keeps
2 bits). A last chunk of r elements keeps ceil(density * r). What is not sent, and what rounding takes,
belongs to error feedback.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil

import torch
from torch import Tensor

from medley.compression.codec import Payload, check_scales, checked, output, tensor_of
from medley.compression.int8 import STEPS, quantised
from medley.protocol.errors import FrameError

CHUNK = 4096


@dataclass(frozen=True, slots=True)
class _Part:
    """`rows` chunks of one width, at element `start` of the vector and byte `at` of the payload."""

    start: int
    rows: int
    width: int
    kept: int
    at: int

    @property
    def nbytes(self) -> int:
        return 2 * self.rows + _packed_nbytes(self.rows * self.kept) + self.rows * self.kept

    def rows_of(self, x: Tensor) -> Tensor:
        return x[self.start : self.start + self.rows * self.width].view(self.rows, self.width)


@dataclass(frozen=True, slots=True)
class TopK:
    density: float
    name: str = "topk"

    def nbytes(self, n: int) -> int:
        return sum(part.nbytes for part in self._parts(n))

    def encode(self, x: Tensor) -> Tensor:
        raw = torch.empty(self.nbytes(x.numel()), dtype=torch.uint8)
        for part in self._parts(x.numel()):
            _encode(part.rows_of(x.detach()), part, raw[part.at : part.at + part.nbytes])
        return raw

    def decode(self, payload: Payload, n: int, out: Tensor | None = None) -> Tensor:
        raw = tensor_of(checked(payload, self.nbytes(n), self.name))
        found = [(part, *_decode(raw[part.at : part.at + part.nbytes], part)) for part in self._parts(n)]
        x = output(n, out).zero_()
        for part, offsets, values in found:
            part.rows_of(x).scatter_(1, offsets, values)
        return x

    def _parts(self, n: int) -> Iterator[_Part]:
        """The whole chunks, then the rest: the two widths a vector can have."""
        whole, rest = divmod(n, CHUNK)
        at = 0
        if whole:
            part = _Part(0, whole, CHUNK, ceil(self.density * CHUNK), 0)
            at = part.nbytes
            yield part
        if rest:
            yield _Part(whole * CHUNK, 1, rest, ceil(self.density * rest), at)


def _encode(rows: Tensor, part: _Part, raw: Tensor) -> None:
    # Rising offsets make the bytes of one vector unique; topk alone promises no order among its results.
    offsets = rows.abs().topk(part.kept, dim=1, sorted=False).indices.sort(dim=1).values
    values = rows.gather(1, offsets)
    scales = (values.abs().amax(1) / STEPS).to(torch.bfloat16)
    scale_bytes, offset_bytes, value_bytes = _sections(raw, part)
    scale_bytes.copy_(scales.view(torch.uint8))
    offset_bytes.copy_(_pack12(offsets.flatten()))
    value_bytes.view(torch.int8).copy_(quantised(values, scales.float()).flatten())


def _decode(raw: Tensor, part: _Part) -> tuple[Tensor, Tensor]:
    """(offsets int64 [rows, kept], values fp32 [rows, kept]), all of them checked."""
    scale_bytes, offset_bytes, value_bytes = _sections(raw, part)
    # A copy, because an odd number of bytes before the section would leave the two-byte view unaligned.
    scales = scale_bytes.clone().view(torch.bfloat16).float()
    check_scales(scales, "topk")
    offsets = _unpack12(offset_bytes, part.rows * part.kept).view(part.rows, part.kept)
    if (offsets[:, 1:] <= offsets[:, :-1]).any() or (offsets[:, -1] >= part.width).any():
        raise FrameError("topk payload has offsets out of order or beyond the end of their chunk")
    values = value_bytes.view(torch.int8).view(part.rows, part.kept).float()
    return offsets, values.mul_(scales[:, None])


def _sections(raw: Tensor, part: _Part) -> tuple[Tensor, Tensor, Tensor]:
    kept = part.rows * part.kept
    sizes = [2 * part.rows, _packed_nbytes(kept), kept]
    scales, offsets, values = raw.split(sizes)
    return scales, offsets, values


def _packed_nbytes(count: int) -> int:
    """Two 12-bit numbers in three bytes; an odd count is filled up with a zero."""
    return 3 * (-(-count // 2))


def _pack12(numbers: Tensor) -> Tensor:
    pairs = torch.nn.functional.pad(numbers, (0, numbers.numel() % 2)).view(-1, 2)
    low, high = pairs[:, 0], pairs[:, 1]
    packed = torch.stack((low & 255, (low >> 8) | ((high & 15) << 4), high >> 4), dim=1)
    return packed.to(torch.uint8).flatten()


def _unpack12(raw: Tensor, count: int) -> Tensor:
    triples = raw.view(-1, 3).long()
    low = triples[:, 0] | ((triples[:, 1] & 15) << 8)
    high = (triples[:, 1] >> 4) | (triples[:, 2] << 4)
    return torch.stack((low, high), dim=1).flatten()[:count]
