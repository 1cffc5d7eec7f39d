"""How much memory is free on this machine, in bytes, before anything large is allocated."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import psutil
import torch

CGROUP = Path("/sys/fs/cgroup")
OWN = Path("/proc/self/cgroup")
# The part of this machine's memory that a process may count on: set by whoever starts several nodes side by side.
SHARE = "MEDLEY_MEMORY_SHARE"


def available_nbytes(device: torch.device | None = None) -> int:
    """Bytes that could be allocated now: of the accelerator, else this process's share of the machine or its cgroup."""
    if device is not None and device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = min([int(psutil.virtual_memory().available), *_groups_free()])
    return int(free * float(os.environ.get(SHARE, "1")))


def _groups_free() -> list[int]:
    """What this process's control groups leave, of either version; files that can be dropped count as free."""
    found = []
    for group, limit, used, cache in _groups():
        most, now = _number(group / limit), _number(group / used)
        if most is not None and now is not None:
            found.append(max(0, most - now + _stat(group, cache)))
    return found


def _groups() -> Iterator[tuple[Path, str, str, str]]:
    """(directory, file of the limit, of the use, line of the file cache): the root, as containers see it, and ours."""
    newer = ("memory.max", "memory.current", "inactive_file")
    older = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    yield CGROUP, *newer
    yield CGROUP / "memory", *older
    try:
        lines = OWN.read_text().splitlines()
    except OSError:
        return
    for _, controllers, path in (line.split(":", 2) for line in lines if line.count(":") >= 2):
        if not controllers:
            yield CGROUP / path.lstrip("/"), *newer
        elif "memory" in controllers.split(","):
            yield CGROUP / "memory" / path.lstrip("/"), *older


def _stat(group: Path, name: str) -> int:
    try:
        lines = (group / "memory.stat").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{name} ")), 0)


def _number(path: Path) -> int | None:
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def readable(nbytes: int) -> str:
    """For sentences: 1.5 GiB, 300 MiB."""
    return f"{nbytes / 2**30:.1f} GiB" if nbytes >= 2**30 else f"{nbytes / 2**20:.0f} MiB"
