"""How a process hands options to another that it starts: a frozen dataclass as a JSON file, paths included."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import msgspec

T = TypeVar("T")


def write_options(path: Path, options: object) -> None:
    path.write_bytes(msgspec.json.encode(options, enc_hook=str))


def read_options(path: Path, kind: type[T]) -> T:
    """Raises msgspec.ValidationError for what `write_options` did not write."""
    return msgspec.json.decode(path.read_bytes(), type=kind, dec_hook=_path)


def _path(kind: type, value: object) -> object:
    return Path(str(value)) if kind is Path else value
