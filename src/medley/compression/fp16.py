"""Half precision with a power of two per group of 1024, so that nothing overflows and little underflows.

Plain fp16 ends at 65504 and loses gradients under 6e-8. Scaling by a power of two is exact, so the error is
fp16's own: at most 2**-11 of an element, or 2**-39 of the largest of its group where that is more.
"""

from __future__ import annotations

import torch
from torch import Tensor

from medley.compression.codec import Payload, check_scales, checked, output, tensor_of
from medley.compression.groups import group_count, grouped, largest, pack, scale_into, unpack

_TOP = 15  # the largest of a group lands in [2**14, 2**15), one doubling under fp16's end


class Fp16:
    name = "fp16"

    def nbytes(self, n: int) -> int:
        return 4 * group_count(n) + 2 * n

    def encode(self, x: Tensor) -> Tensor:
        groups = grouped(x)
        scales = _powers(largest(groups))
        return pack(scales, (groups / scales[:, None]).half(), x.numel())

    def decode(self, payload: Payload, n: int, out: Tensor | None = None) -> Tensor:
        raw = tensor_of(checked(payload, self.nbytes(n), self.name))
        scales, values = unpack(raw, n, torch.float16)
        check_scales(scales, self.name)
        return scale_into(values, scales, output(n, out))


def _powers(largest_of_group: Tensor) -> Tensor:
    """2 ** (exponent - _TOP), from bits, because pow() may be off by one place; NaN for a diverged group."""
    exponent = torch.frexp(largest_of_group).exponent
    bits = (exponent - _TOP).clamp(-126, 127).add(127).to(torch.int32).bitwise_left_shift(23)
    return torch.where(torch.isfinite(largest_of_group), bits.view(torch.float32), torch.nan)
