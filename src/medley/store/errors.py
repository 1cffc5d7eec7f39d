"""What a store can answer besides success; the rest of the tree is in `medley.protocol.errors`."""

from __future__ import annotations

import errno
from typing import Final

from medley.protocol.errors import MedleyError

_FULL: Final = frozenset({errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)})


class Fenced(MedleyError):
    """Somebody newer is the writer now: this process must stop, not retry."""


class StoreFull(MedleyError):
    """No room: nothing of what was being written is visible, and what was there before still is."""


def is_full(error: BaseException) -> bool:
    """Whether an OSError means that a disk, a quota or a file-size limit is exhausted."""
    return isinstance(error, OSError) and error.errno in _FULL
