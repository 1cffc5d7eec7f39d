"""Write safetensors as a stream: each tensor is let go once it is written, so a checkpoint costs little memory.

The library's own writer copies everything first. What is written here passes `store.tensorfile` and loads with plain
safetensors.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch

_NAMES = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
}


def write_tensors(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Write and empty `tensors` (names to contiguous CPU tensors). Raises OSError when there is no room."""
    order = sorted(tensors)
    header: dict[str, object] = {}
    offset = 0
    for name in order:
        tensor = tensors[name]
        header[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + tensor.nbytes],
        }
        offset += tensor.nbytes
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    with open(path, "wb") as file:
        file.write(len(head).to_bytes(8, "little"))
        file.write(head)
        for name in order:
            tensor = tensors.pop(name).contiguous()
            file.write(tensor.reshape(-1).view(torch.uint8).numpy().data)
