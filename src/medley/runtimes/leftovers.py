"""What killed processes leave behind: temporary folders and files, swept when their owner starts again."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path


def sweep(root: Path, *patterns: str) -> None:
    """Delete what matches below `root`. The caller knows that nobody writes there now."""
    for pattern in patterns:
        for path in root.glob(pattern):
            with contextlib.suppress(OSError):
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink()
