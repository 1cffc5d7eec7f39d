"""How much memory is free on this machine, in bytes, before anything large is allocated."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import torch

CGROUP = Path("/sys/fs/cgroup")
# The part of this machine's memory that a process may count on: set by whoever starts several nodes side by side.
SHARE = "MEDLEY_MEMORY_SHARE"


def available_nbytes(device: torch.device | None = None) -> int:
    """Bytes that could be allocated now: of the accelerator, else this process's share of the machine or its cgroup."""
    if device is not None and device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = int(psutil.virtual_memory().available)
    return int(min(free, _cgroup_free(free)) * float(os.environ.get(SHARE, "1")))


def _cgroup_free(otherwise: int) -> int:
    limit, used = _number(CGROUP / "memory.max"), _number(CGROUP / "memory.current")
    return otherwise if limit is None or used is None else max(0, limit - used)


def _number(path: Path) -> int | None:
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def readable(nbytes: int) -> str:
    """For sentences: 1.5 GiB, 300 MiB."""
    return f"{nbytes / 2**30:.1f} GiB" if nbytes >= 2**30 else f"{nbytes / 2**20:.0f} MiB"
