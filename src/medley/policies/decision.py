"""A choice and the sentence that explains it; the sentence reaches the log, the page and `medley explain` unchanged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

P = TypeVar("P")


@dataclass(frozen=True, slots=True)
class Decision(Generic[P]):
    plan: P
    reason: str
