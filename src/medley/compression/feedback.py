"""Error feedback: what a lossy codec dropped joins the next update (Seide et al. 2014; arXiv 1901.09847).

The residual is one flat fp32 vector as long as the layout. It is the worker's own state: a worker that dies
takes it along, and one that rejoins starts from zero.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite

import torch
from torch import Tensor

from medley.compression.codec import Codec, Payload, bytes_of
from medley.protocol.layout import Block


class ErrorFeedback:
    def __init__(self, numel: int, decay: float = 1.0) -> None:
        self.decay = decay
        self.residual = torch.zeros(numel, dtype=torch.float32)

    def compensate(self, x: Tensor, offset: int = 0) -> Tensor:
        """The residual at `offset`, made decay * residual + x in place; x is left as it is."""
        return self._at(offset, x).mul_(self.decay).add_(x)

    def absorb(self, decoded: Tensor, offset: int = 0) -> None:
        """Take away what the receiver will see, after `compensate`; what remains is what was lost."""
        self._at(offset, decoded).sub_(decoded)

    def norm(self) -> float:
        return float(torch.linalg.vector_norm(self.residual, dtype=torch.float64))

    def zero(self) -> None:
        self.residual.zero_()

    def _at(self, offset: int, like: Tensor) -> Tensor:
        return self.residual[offset : offset + like.numel()]


def encode_update(
    flat: Tensor, blocks: Sequence[Block], codec: Codec, feedback: ErrorFeedback | None = None
) -> dict[int, Tensor]:
    """uint8 payloads of `flat` fp32 [layout.numel] by block index; `flat` is left as it is.

    With feedback the payloads are of `flat` plus the residual, and the residual becomes what they lost. An
    update that is not finite is encoded as it is, without touching the residual, so that the shards see and
    refuse it.
    """
    if feedback is None or not isfinite(float(torch.linalg.vector_norm(flat, dtype=torch.float64))):
        return {b.index: codec.encode(flat[b.offset : b.offset + b.numel]) for b in blocks}
    room = torch.empty(max((b.numel for b in blocks), default=0))
    payloads = {}
    for b in blocks:
        payloads[b.index] = codec.encode(feedback.compensate(flat[b.offset : b.offset + b.numel], b.offset))
        seen = codec.decode(bytes_of(payloads[b.index]), b.numel, out=room[: b.numel])
        feedback.absorb(seen, b.offset)
    return payloads


def decode_update(payloads: Mapping[int, Payload], blocks: Sequence[Block], codec: Codec, out: Tensor) -> Tensor:
    """What shards see of an update, written into `out` fp32 [layout.numel]; for the carry.

    Raises KeyError for a block without payload and FrameError for a damaged one.
    """
    for b in blocks:
        codec.decode(payloads[b.index], b.numel, out=out[b.offset : b.offset + b.numel])
    return out
