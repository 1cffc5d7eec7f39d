"""In which number format a model computes here: bf16 where the processor multiplies it, else fp32."""

from __future__ import annotations

import torch
from torch import nn

from medley.protocol.errors import UserError

NAMES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def choose_dtype(name: str = "auto", device: torch.device | None = None) -> torch.dtype:
    """`auto`, `fp32` or `bf16` as a torch dtype. Raises `UserError` for another word."""
    if name in NAMES:
        return NAMES[name]
    if name != "auto":
        raise UserError(f"model.dtype '{name}' is unknown; allowed: auto, fp32, bf16")
    return torch.bfloat16 if computes_bf16(device or choose_device()) else torch.float32


def choose_device() -> torch.device:
    """The accelerator where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def computes_bf16(device: torch.device) -> bool:
    """Emulated bf16 is slower than fp32, so this asks for instructions, not for support."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    features = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(
        features.get("avx512_bf16") or features.get("amx_bf16") or features.get("amx_tile") or features.get("bf16")
    )


def cast_parameters(network: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Parameters only: buffers such as rotary frequencies lose too much in bf16."""
    for p in network.parameters():
        if p.is_floating_point():
            p.data = p.data.to(dtype)
    return network
