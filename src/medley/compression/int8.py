"""Eight bits an element: symmetric, one fp32 scale per group of 1024. The error is at most half a scale."""

from __future__ import annotations

import torch
from torch import Tensor

from medley.compression.codec import Payload, check_scales, checked, output, tensor_of
from medley.compression.groups import group_count, grouped, largest, pack, scale_into, unpack

STEPS = 127.0


class Int8:
    name = "int8"

    def nbytes(self, n: int) -> int:
        return 4 * group_count(n) + n

    def encode(self, x: Tensor) -> Tensor:
        groups = grouped(x)
        scales = largest(groups) / STEPS
        return pack(scales, quantised(groups, scales), x.numel())

    def decode(self, payload: Payload, n: int, out: Tensor | None = None) -> Tensor:
        raw = tensor_of(checked(payload, self.nbytes(n), self.name))
        scales, values = unpack(raw, n, torch.int8)
        check_scales(scales, self.name)
        return scale_into(values, scales, output(n, out))


def quantised(rows: Tensor, scales: Tensor) -> Tensor:
    """int8 [rows, width]: the nearest multiples of each row's scale; zeros where the scale underflowed."""
    safe = torch.where(scales > 0, scales, torch.inf)
    return (rows / safe[:, None]).round_().clamp_(-STEPS, STEPS).nan_to_num_(0.0).to(torch.int8)
