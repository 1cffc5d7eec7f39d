"""bf16 linear layers as kernels read them fastest, since decoding a stream is reading weights.

Where our own kernels are, weights stay as they are; else they lie as oneDNN reads them. The numbers are those of the
plain layer (bf16 in, fp32 sums, bf16 out), and so are the bytes. Where the processor has no such kernels either, or the
weights are not bf16 on a CPU, a layer stays as it was.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from medley.models.kernels.products import takes
from medley.models.pages import in_large_pages
from medley.models.streamed_linear import StreamedLinear, streamed_bf16

TOKENS = 8  # that oneDNN is told to expect; the order it answers with serves any number
ROWS = 5  # its kernels read weights a third faster for 4 to 6 rows than for fewer (AVX512, bf16 and int8 alike)


class PackedLinear(nn.Module):
    """y = x W^T + b."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.nbytes = linear.weight.nbytes
        # No parameter: it has neither strides nor storage that anything but the kernel could use.
        self._weight_NK = in_large_pages(torch.ops.mkldnn._reorder_linear_weight(linear.weight.data, TOKENS))
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        flat_MK = x.reshape(-1, x.shape[-1])
        out_MN: Tensor = torch.ops.mkldnn._linear_pointwise(
            with_rows(flat_MK), self._weight_NK, self.bias, "none", [], ""
        )
        return out_MN[: len(flat_MK)].reshape(*x.shape[:-1], -1)


def with_rows(few_MK: Tensor) -> Tensor:
    """As many rows as the kernels want at least; those that are added repeat the others, and cost no more reading."""
    rows = len(few_MK)
    return few_MK if rows >= ROWS else torch.cat([few_MK] * -(-ROWS // rows))[:ROWS]


def pack(part: nn.Module) -> nn.Module:
    """The part with every linear layer packed, or streamed."""
    if isinstance(part, nn.Linear):
        return streamed_bf16(part) if streams(part) else PackedLinear(part)
    for name, child in part.named_children():
        setattr(part, name, pack(child))
    return part


def streams(linear: nn.Linear) -> bool:
    """Whether our own kernels take it as it is."""
    return takes("bf16", linear.in_features)


def matrix_of(linear: nn.Module) -> nn.Parameter | None:
    """The weights as a matrix that others can share, where they still are one."""
    held = linear.packed if isinstance(linear, StreamedLinear) and linear.kind == "bf16" else None
    found = held if held is not None else getattr(linear, "weight", None)
    return found if isinstance(found, nn.Parameter) else None


def can_pack(dtype: torch.dtype, device: torch.device) -> bool:
    supported = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return bool(dtype == torch.bfloat16 and device.type == "cpu" and supported)
