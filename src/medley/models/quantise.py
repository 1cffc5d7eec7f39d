"""Weight-only int8 and int4 linear layers for a CPU: decoding reads every weight, so fewer bytes are less time.

int8: one scale a row, symmetric. int4: one scale and one offset for every `GROUP` weights of a row. Activations keep
their precision: bf16, or 16 bits beside a token's largest value. A bf16 model's layers are `StreamedLinear`, where our
own kernels are; else torch's kernels take them. Where the processor multiplies bytes by itself (VNNI), those meet int8
weights as two rows of bytes, the upper and the lower halves, so that eight tokens still cost little more than one.
Embeddings and norms stay bf16; a layer whose shape a kernel cannot take stays as it was. Made from weights as they are
loaded; no calibration, no file format of its own.
"""

from __future__ import annotations

from functools import cache
from typing import Literal

import torch
from torch import Tensor, nn

from medley.models.kernels.products import GROUP, pack_int4, pack_int8, takes
from medley.models.kernels.products import ROWS as STREAMED_ROWS
from medley.models.kernels.products import Weights as Streamed
from medley.models.pages import in_large_pages
from medley.models.slices import Transform
from medley.models.streamed_linear import StreamedLinear, bias_of, padded
from medley.protocol.errors import UserError, did_you_mean

Weights = Literal["int8", "int4"]
KINDS = ("int8", "int4")
ROWS = 16  # of int4 weights are packed together
CHUNK = 1024  # rows that are quantised at a time, in fp32; a multiple of those that any kernel packs together
STEPS = 127 * 256  # of a token's largest value, in 16 bits
# A token in steps as two halves of 0 to 255: in two's complement they are the bytes of v + 128 * 257, and the lower
# bytes of that and of its 256th part; the half more rounds. R: lower and upper, three times, for a single token.
MOVED_R11 = torch.tensor([32896.5, 32896.5 / 256] * 3)[:, None, None]
PART_R11 = torch.tensor([1, 1 / 256] * 3)[:, None, None]


class Int8Linear(nn.Module):
    """y = x W^T + b with W = scale_N * int8 [N, K]."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        quantised_NK, scale_N = _int8(linear.weight.data)
        self.weight_NK = nn.Buffer(in_large_pages(quantised_NK))
        self.scale_N = nn.Buffer(scale_N)
        self.bias = None if linear.bias is None else nn.Parameter(linear.bias.data.bfloat16(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        flat_MK = x.reshape(-1, x.shape[-1]).bfloat16().contiguous()
        out: Tensor = torch._weight_int8pack_mm(flat_MK, self.weight_NK, self.scale_N)
        return _shaped(out, x, self.bias)

    def dequantised(self) -> Tensor:
        """[N, K] in fp32: what the kernel multiplies by."""
        return self.weight_NK.float() * self.scale_N.float()[:, None]


class Halves:
    """Tokens in 16 bits, as two rows of bytes around 128 each; made once for the layers that take the same input."""

    def __init__(self) -> None:
        self._last: tuple[Tensor, Tensor, Tensor | float] | None = None

    def of(self, x: Tensor) -> tuple[Tensor, Tensor | float]:
        """[2 M or more, K], all lower halves before all upper ones, and the step of each token: [M, 1], or one."""
        if self._last is None or self._last[0] is not x:
            flat_MK = x.reshape(-1, x.shape[-1]).float()
            step, moved_RMK = _one_moved(flat_MK) if len(flat_MK) == 1 else _moved(flat_MK)
            # An integer becomes a byte by keeping its lower half.
            self._last = x, moved_RMK.to(torch.int32).to(torch.uint8).flatten(0, 1), step
        return self._last[1], self._last[2]


def _moved(flat_MK: Tensor) -> tuple[Tensor, Tensor]:
    """The step of each token, and it in steps as `MOVED_R11` and `PART_R11` say, once."""
    step_M1 = flat_MK.abs().amax(1, keepdim=True).clamp_(min=1e-30).div_(STEPS)
    return step_M1, torch.addcmul(MOVED_R11[:2], PART_R11[:2], flat_MK / step_M1)


def _one_moved(flat_1K: Tensor) -> tuple[float, Tensor]:
    """The same of a single token, with fewer kernels, and as often as oneDNN reads weights fastest."""
    low, high = torch.aminmax(flat_1K)
    step = max(-float(low), float(high), 1e-30) / STEPS
    return step, torch.addcmul(MOVED_R11, PART_R11, flat_1K, value=1 / step)


class HalvesInt8Linear(nn.Module):
    """As `Int8Linear`, by kernels that multiply bytes; within fp32's rounding of x in 16 bits times W."""

    def __init__(self, linear: nn.Linear, halves: Halves) -> None:
        super().__init__()
        quantised_NK, scale_N = _int8(linear.weight.data)
        # Bytes of tokens lie around 128: what that adds to a sum is known, so that the kernel need not.
        moved_N = quantised_NK.sum(1, dtype=torch.int32).float().mul_(-128 * scale_N.float())
        self.halves = halves
        # No buffer: oneDNN's order has neither strides nor storage that anything but its kernel could use.
        self._packed = in_large_pages(torch.ops.onednn.qlinear_prepack(quantised_NK, None))
        self.scale_N = nn.Buffer(scale_N.float())
        self.moved_N = nn.Buffer(moved_N)
        self.bias = None if linear.bias is None else nn.Parameter(linear.bias.data.bfloat16(), requires_grad=False)
        self.nbytes = quantised_NK.nbytes

    def forward(self, x: Tensor) -> Tensor:
        halves_RK, step = self.halves.of(x)
        sums_RN: Tensor = torch.ops.onednn.qlinear_pointwise(
            halves_RK, 1.0, 0, self._packed, self.scale_N, None, self.moved_N, 1.0, 0, torch.float32, "none", [], ""
        )
        tokens = x.numel() // x.shape[-1]
        out_MN = torch.add(sums_RN[:tokens], sums_RN[tokens : 2 * tokens], alpha=256).mul_(step).to(x.dtype)
        return _shaped(out_MN, x, self.bias)


def _int8(weight_NK: Tensor) -> tuple[Tensor, Tensor]:
    """Quantised weights and the scale of each row."""
    chunks = [_int8_chunk(chunk_nK) for chunk_nK in weight_NK.split(CHUNK)]
    return torch.cat([quantised for quantised, _ in chunks]), torch.cat([scale for _, scale in chunks])


def _int8_chunk(weight_NK: Tensor) -> tuple[Tensor, Tensor]:
    wide_NK = weight_NK.float()
    scale_N = (wide_NK.abs().amax(1).clamp(min=1e-12) / 127).bfloat16()
    # Rounded against the scale that will be used; rounding the scale first costs up to one step at the ends.
    return wide_NK.div_(scale_N.float()[:, None]).round_().clamp_(-127, 127).to(torch.int8), scale_N


class Int4Linear(nn.Module):
    """y = x W^T + b with W = (uint4 - 8) * scale + offset, for groups of `GROUP` along K; rows padded to 16."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.rows = linear.out_features
        chunks = [_int4_chunk(chunk_nK) for chunk_nK in linear.weight.data.split(CHUNK)]
        self.packed = nn.Buffer(in_large_pages(torch.cat([packed for packed, _ in chunks])))
        self.scales_GN2 = nn.Buffer(torch.cat([scales for _, scales in chunks], dim=1))
        self.bias = None if linear.bias is None else nn.Parameter(linear.bias.data.bfloat16(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        flat_MK = x.reshape(-1, x.shape[-1]).bfloat16().contiguous()
        out: Tensor = torch._weight_int4pack_mm_for_cpu(flat_MK, self.packed, GROUP, self.scales_GN2)
        return _shaped(out[:, : self.rows], x, self.bias)


def _int4_chunk(weight_nK: Tensor) -> tuple[Tensor, Tensor]:
    """Packed weights, and scale and offset of each group [G, N, 2]."""
    nibbles_NK, scale_NG, offset_NG = _nibbles(padded(weight_nK.float(), ROWS))
    packed = torch._convert_weight_to_int4pack_for_cpu(nibbles_NK, 1)
    return packed, torch.stack([scale_NG.t(), offset_NG.t()], dim=-1).contiguous()


def _nibbles(weight_NK: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Values 0 to 15 as int32 [N, K], and the scale and the offset of each group of a row, [N, G] in bf16."""
    grouped_NGg = weight_NK.reshape(weight_NK.shape[0], -1, GROUP)
    low_NG, high_NG = grouped_NGg.amin(-1), grouped_NGg.amax(-1)
    scale_NG = ((high_NG - low_NG).clamp(min=1e-10) / 15).bfloat16()
    offset_NG = (low_NG + scale_NG.float() * 8).bfloat16()
    steps = (grouped_NGg - offset_NG.float()[..., None]) / scale_NG.float()[..., None]
    return (steps.round() + 8).clamp(0, 15).to(torch.int32).reshape(weight_NK.shape), scale_NG, offset_NG


def _streamed(linear: nn.Linear, kind: str) -> StreamedLinear:
    pieces = (padded(chunk_nK) for chunk_nK in linear.weight.data.split(CHUNK))
    chunks = [_streamed_chunk(piece_nK, kind) for piece_nK in pieces]
    packed, scales = (torch.cat([chunk[which] for chunk in chunks]) for which in (0, 1))
    return StreamedLinear(Streamed(kind, linear.out_features, linear.in_features, packed, scales, bias_of(linear)))


def _streamed_chunk(weight_nK: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    if kind == "int4":
        return pack_int4(*_nibbles(weight_nK.float()))
    quantised_nK, scale_n = _int8_chunk(weight_nK)
    return pack_int8(quantised_nK), scale_n


def _shaped(out_MN: Tensor, x: Tensor, bias: Tensor | None) -> Tensor:
    out = out_MN.reshape(*x.shape[:-1], out_MN.shape[-1])
    return out if bias is None else out + bias


def quantiser(kind: str) -> Transform | None:
    """For `load_slice`: every linear layer of a part replaced; None for "none". Raises UserError for another word."""
    if kind == "none":
        return None
    if kind not in KINDS:
        raise UserError(f"weights '{kind}' are unknown; {did_you_mean(kind, ('none', *KINDS))}")

    def transform(part: nn.Module) -> nn.Module:
        return _replaced(part, kind, Halves())

    return transform


def _replaced(part: nn.Module, kind: str, halves: Halves) -> nn.Module:
    if isinstance(part, nn.Linear):
        return _quantised(part, kind, halves)
    for name, child in part.named_children():
        setattr(part, name, _replaced(child, kind, halves))
    return part


def linear_nbytes(linear: nn.Linear, kind: str) -> int:
    """Bytes of this layer of a bf16 model after `quantiser(kind)`, without making it."""
    rows, columns, streams = linear.out_features, linear.in_features, takes(kind, linear.in_features)
    bias = 0 if linear.bias is None else 2 * rows
    if kind == "int8":
        padded_rows = rows + (-rows % STREAMED_ROWS if streams else 0)
        return padded_rows * columns + (8 if multiplies_bytes() and not streams else 2) * padded_rows + bias
    if kind == "int4" and columns % GROUP == 0:
        padded_rows = rows + -rows % (STREAMED_ROWS if streams else ROWS)
        return padded_rows * columns // 2 + 4 * padded_rows * columns // GROUP + bias
    return 2 * rows * columns + bias


def _quantised(linear: nn.Linear, kind: str, halves: Halves) -> nn.Module:
    if linear.weight.dtype == torch.bfloat16 and takes(kind, linear.in_features):
        return _streamed(linear, kind)
    if kind == "int8":
        return HalvesInt8Linear(linear, halves) if multiplies_bytes() else Int8Linear(linear)
    return Int4Linear(linear) if linear.in_features % GROUP == 0 else linear


@cache
def multiplies_bytes() -> bool:
    """Without VNNI the same kernels exist, but their sums of bytes may overflow."""
    return "onednn" in torch.backends.quantized.supported_engines and torch.cpu._is_vnni_supported()
