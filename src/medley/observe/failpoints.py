"""Named places where a process can be told to die, so that crashes are tested where they hurt.

Disabled unless the environment variable MEDLEY_FAILPOINTS names a directory; then a file `<directory>/<name>`
arms the failpoint `name`. A hit that fires renames the file to `<name>.fired.<pid>` (so it fires once, in one
process) and kills the process as `kill -9` would: no cleanup, no flush. The file may hold words: an integer
says how many hits of a process to let pass first, `key=value` fires only in a process that called
`describe_process(key="value")`, `full` raises the error of a full disk there instead of killing.
Each name's first hit in a process is appended to `<directory>/seen.<pid>`: the list of reachable boundaries.
"""

from __future__ import annotations

import errno
import os
import signal
import threading
from pathlib import Path
from typing import Final

_DIRECTORY: Final = os.environ.get("MEDLEY_FAILPOINTS") or None
_MAX_ORDER_NBYTES: Final = 4096
FULL: Final = "full"

_labels: dict[str, str] = {}
_hits: dict[str, int] = {}
_lock = threading.Lock()


def hit(name: str) -> None:
    """Die here if the failpoint `name` is armed for this process; otherwise, and when disabled, do
    nothing."""
    if _DIRECTORY is not None:
        _hit(Path(_DIRECTORY), name)


def describe_process(**labels: str) -> None:
    """Say what this process is (`role="coordinator"`, `node="w1"`), for orders that fire in one process
    only."""
    with _lock:
        _labels.update(labels)


def _hit(directory: Path, name: str) -> None:
    with _lock:
        earlier = _hits.get(name, 0)
        _hits[name] = earlier + 1
        if earlier == 0:
            _record(directory, name)
    order = _read_order(directory / name)
    if order is None or not _is_meant(order, earlier):
        return
    try:
        # The rename is the claim: of two processes that read the order, one wins and dies.
        os.rename(directory / name, directory / f"{name}.fired.{os.getpid()}")
    except FileNotFoundError:
        return
    if FULL in order:
        raise OSError(errno.ENOSPC, f"failpoint {name}: {os.strerror(errno.ENOSPC)}")
    _die()


def _record(directory: Path, name: str) -> None:
    with open(directory / f"seen.{os.getpid()}", "a", encoding="utf-8") as seen:
        seen.write(f"{name}\n")


def _read_order(path: Path) -> list[str] | None:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read(_MAX_ORDER_NBYTES).split()
    except FileNotFoundError:
        return None


def _is_meant(order: list[str], earlier_hits: int) -> bool:
    for word in order:
        key, equals, value = word.partition("=")
        if equals and _labels.get(key) != value:
            return False
        if not equals and word != FULL and earlier_hits < int(word):
            return False
    return True


def _die() -> None:
    if hasattr(signal, "SIGKILL"):
        os.kill(os.getpid(), signal.SIGKILL)
    os._exit(137)
