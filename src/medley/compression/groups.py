"""Values in groups of 1024 that share one fp32 scale: the arithmetic under fp16 and int8.

A payload is the scales, then the values; the last group may be shorter than the others.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

GROUP = 1024


def group_count(n: int) -> int:
    return -(-n // GROUP)


def grouped(x: Tensor) -> Tensor:
    """[groups, GROUP] of `x` [n], the last group filled up with zeros."""
    n = x.numel()
    return pad(x.detach(), (0, group_count(n) * GROUP - n)).view(-1, GROUP)


def largest(groups: Tensor) -> Tensor:
    """[groups] largest magnitudes; NaN where a group holds one."""
    return groups.abs().amax(1) if groups.numel() else groups.new_empty(0)


def pack(scales: Tensor, values: Tensor, n: int) -> Tensor:
    """uint8 payload: fp32 scales, then the first n of `values` in their own type."""
    head = 4 * scales.numel()
    raw = torch.empty(head + n * values.element_size(), dtype=torch.uint8)
    raw[:head].view(torch.float32).copy_(scales)
    raw[head:].view(values.dtype).copy_(values.flatten()[:n])
    return raw


def unpack(raw: Tensor, n: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(scales [groups], values [n]) of a payload whose length was checked."""
    head = 4 * group_count(n)
    return raw[:head].view(torch.float32), raw[head:].view(dtype)


def scale_into(values: Tensor, scales: Tensor, out: Tensor) -> Tensor:
    """out [n] = values [n] times the scale of their group."""
    out.copy_(values)
    whole = out.numel() // GROUP
    out[: whole * GROUP].view(whole, GROUP).mul_(scales[:whole, None])
    if whole < scales.numel():
        out[whole * GROUP :].mul_(scales[whole])
    return out
