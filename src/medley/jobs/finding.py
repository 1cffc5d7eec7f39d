"""One thing that `medley doctor` found, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Finding:
    """`says` is a fact; `do` is what would mend it, empty where nothing need be done."""

    level: Literal["ok", "warn", "fail"]
    what: str
    says: str
    do: str = ""
