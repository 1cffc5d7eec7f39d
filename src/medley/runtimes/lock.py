"""One process at a time for one directory: a file locked by the operating system, which lets go when the process dies.

Process ids in files are no substitute: after a reboot another program may have the number.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from medley.protocol.errors import UserError


class Lock:
    """Held until `release`, or until this process ends in whatever way."""

    def __init__(self, path: Path, taken: str) -> None:
        """Raises UserError: with the sentence `taken` when another process holds it, or when it cannot be written."""
        self._taken = taken
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise UserError(f"{path.parent} cannot be used ({error.strerror}); choose another with --dir") from None
        try:
            _lock(self._descriptor)
        except OSError:
            os.close(self._descriptor)
            raise UserError(taken) from None

    def release(self) -> None:
        os.close(self._descriptor)


def is_held(path: Path) -> bool:
    """Whether a process holds the lock now. A file that is missing or not ours to open counts as free."""
    try:
        descriptor = os.open(path, os.O_RDWR)
    except OSError:
        return False
    try:
        _lock(descriptor)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def _lock(descriptor: int) -> None:
    if sys.platform == "win32":
        import msvcrt

        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
