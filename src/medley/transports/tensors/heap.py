"""Keep freed chunk buffers with the process, where the C library is glibc.

libzmq allocates each message on the heap and frees it on another thread. glibc then gives the pages back to the kernel
and faults them in again for the next chunk, which halves the speed of a fast link (measured; see
`docs/protocol-tensors.md`). Elsewhere this does nothing.
"""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
MMAP_THRESHOLD_NBYTES = 8 * 1024 * 1024
TRIM_THRESHOLD_NBYTES = 64 * 1024 * 1024


def keep_freed_chunks() -> bool:
    """Set glibc's thresholds for the whole process: blocks under 8 MiB from the heap, 64 MiB free before trimming.

    Tensors above 8 MiB are mapped and returned as before. False where the C library has no `mallopt`.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    trimmed = mallopt(_M_TRIM_THRESHOLD, TRIM_THRESHOLD_NBYTES)
    return bool(trimmed and mallopt(_M_MMAP_THRESHOLD, MMAP_THRESHOLD_NBYTES))
