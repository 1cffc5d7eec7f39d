"""Files that a person asked for by an option: looked at before the work begins, so that none is done in vain."""

from __future__ import annotations

import os
from pathlib import Path

from medley.protocol.errors import UserError


def check_writable(option: str, path: Path) -> None:
    """Raises UserError for a place where no file can be written."""
    parent = path.resolve().parent
    if path.is_dir():
        raise UserError(f"{option} '{path}' is a directory; give the name of a file")
    if not parent.is_dir():
        raise UserError(f"{option} '{path}' cannot be written: its directory does not exist")
    if not os.access(path if path.exists() else parent, os.W_OK):
        raise UserError(f"{option} '{path}' cannot be written: you may not write there")


def write_text(option: str, path: Path, text: str) -> None:
    """Raises UserError where it cannot be written after all."""
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{option} '{path}' cannot be written ({error.strerror})") from error
