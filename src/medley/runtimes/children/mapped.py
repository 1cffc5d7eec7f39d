"""A file as memory that the system pages in and out: sending gigabytes costs none of the process's own."""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def mapped(path: Path) -> Iterator[memoryview]:
    """The file's bytes, read-only, for the length of the block."""
    with path.open("rb") as file:
        if not path.stat().st_size:
            yield memoryview(b"")
            return
        whole = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    view = memoryview(whole)
    try:
        yield view
    finally:
        # A slice still held by the transport keeps the mapping alive; it goes with that slice.
        with contextlib.suppress(BufferError):
            view.release()
            whole.close()
