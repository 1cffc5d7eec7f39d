"""Linear layers on a CPU whose products of few tokens are our own kernels', so that decoding is as fast as reading
weights; products of many tokens are torch's.

bf16 weights stay as they are; int8 and int4 ones lie as the kernels read them and are widened for many tokens, some
rows at a time. bf16 in and out, whatever the weights are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from medley.models.kernels.products import ROWS, Kernels, Linear, Weights, kernels
from medley.models.pages import in_large_pages

FEW = {"bf16": 64, "int8": 32, "int4": 32}  # tokens; for more torch is faster, though it needs whole weights
WIDENED = 1024  # rows at a time: what a processor's last cache holds


class StreamedLinear(nn.Module):
    """y = x W^T + b. The tensors of `weights` are this layer's from now on, and stay where they are."""

    def __init__(self, weights: Weights) -> None:
        super().__init__()
        self.kind, self.rows = weights.kind, weights.rows
        packed = in_large_pages(weights.packed)
        self.packed = packed if isinstance(packed, nn.Parameter) else nn.Parameter(packed, requires_grad=False)
        self.scales, self.bias = (
            None if tensor is None else nn.Parameter(tensor, requires_grad=False)
            for tensor in (weights.scales, weights.bias_N)
        )
        self.described: Linear = weights.described()

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> StreamedLinear:
        """What `to`, `float`, `cuda` and the like do. Kernels, and layers made of several, know weights by address."""
        if any(tensor.data_ptr() != fn(tensor).data_ptr() for tensor in self.parameters()):
            raise RuntimeError("weights that kernels know by address can be neither moved nor converted")
        return self

    def forward(self, x: Tensor) -> Tensor:
        flat_MK = x.reshape(-1, x.shape[-1]).contiguous()
        few = len(flat_MK) <= FEW[self.kind]
        out_MN = _kernels().product(self.described, flat_MK) if few else self._many(flat_MK)
        return out_MN.view(*x.shape[:-1], self.rows)

    def _many(self, x_MK: Tensor) -> Tensor:
        if self.kind == "bf16":
            return functional.linear(x_MK, self.packed, self.bias)
        pieces = range(0, self.rows, WIDENED)
        products = [self._piece(x_MK, first, min(first + WIDENED, self.rows)) for first in pieces]
        out_MN = torch.cat(products, 1)
        return out_MN if self.bias is None else out_MN.add_(self.bias)

    def _piece(self, x_MK: Tensor, first: int, end: int) -> Tensor:
        """[M, end - first]: the product with these rows."""
        product = functional.linear(x_MK, _kernels().widened(self.described, range(first, end)))
        return product if self.scales is None or self.kind != "int8" else product.mul_(self.scales[first:end])


def _kernels() -> Kernels:
    """They are there, or no weights would lie as they read them."""
    found = kernels()
    if found is None:
        raise RuntimeError("the kernels that this layer was made for are not here")
    return found


def streamed_bf16(linear: nn.Linear) -> StreamedLinear:
    """Shares its weights."""
    weight_NK = linear.weight if linear.weight.is_contiguous() else linear.weight.data.contiguous()
    rows, columns = weight_NK.shape
    return StreamedLinear(Weights("bf16", rows, columns, weight_NK, None, bias_of(linear)))


def bias_of(linear: nn.Linear) -> Tensor | None:
    return None if linear.bias is None else linear.bias.data.bfloat16().contiguous()


def padded(weight_NK: Tensor, rows: int = ROWS) -> Tensor:
    """With rows of zeros up to a multiple of `rows`."""
    return functional.pad(weight_NK, (0, 0, 0, -len(weight_NK) % rows))
