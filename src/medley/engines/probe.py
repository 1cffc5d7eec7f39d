"""What this machine computes: the instructions that matter and the speed of a matrix product, measured.

For `medley doctor`. Leaves judging to it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from medley.models.dtype import choose_device, computes_bf16

SIDE = 1024
FEATURES = ("avx2", "avx512_f", "avx512_bf16", "amx_bf16")


@dataclass(frozen=True, slots=True)
class Probe:
    """`*_gflops` are 10^9 floating-point operations a second of a 1024 x 1024 product on `device`."""

    device: str
    threads: int
    features: tuple[str, ...]
    native_bf16: bool
    fp32_gflops: float
    bf16_gflops: float


def probe(now_ns: Callable[[], int], seconds: float = 1.0) -> Probe:
    """Measure for about so many seconds by a monotonic clock, half of them in each format."""
    device = choose_device()
    known = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return Probe(
        device=_device_name(device),
        threads=torch.get_num_threads(),
        features=tuple(name for name in FEATURES if known.get(name)),
        native_bf16=computes_bf16(device),
        fp32_gflops=_gflops(device, torch.float32, now_ns, seconds / 2),
        bf16_gflops=_gflops(device, torch.bfloat16, now_ns, seconds / 2),
    )


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return "cpu (mps is there, but not used)" if torch.backends.mps.is_available() else "cpu"


def _gflops(device: torch.device, dtype: torch.dtype, now_ns: Callable[[], int], seconds: float) -> float:
    a = torch.ones(SIDE, SIDE, device=device, dtype=dtype)
    out = a @ a  # the first product loads kernels
    _wait(device)
    products, began_ns = 0, now_ns()
    while (spent_ns := now_ns() - began_ns) < seconds * 1e9:
        torch.matmul(a, a, out=out)
        _wait(device)
        products += 1
    return 2 * SIDE**3 * products / spent_ns


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
