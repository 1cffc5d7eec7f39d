"""Which groups are held out: by a seeded hash of the group's name, so that no disease is on both sides.

Promises: the same seed and group fall on the same side on every machine, whatever else is in the data; at
least one group on each side where there are two.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Sequence

from medley.data.examples import Example
from medley.protocol.errors import UserError


def split(
    examples: Sequence[Example], fraction: float, seed: int, keep: Collection[str] = ()
) -> tuple[list[Example], list[Example]]:
    """(training, held out).

    Groups in `keep` are always trained. Raises `UserError` for a fraction outside [0, 1).
    """
    if not 0.0 <= fraction < 1.0:
        raise UserError(f"data.heldout_fraction is {fraction}; a fraction from 0 up to, not including, 1 is expected")
    held = _held({e.group for e in examples} - set(keep), fraction, seed, spare=not keep)
    return [e for e in examples if e.group not in held], [e for e in examples if e.group in held]


def _held(groups: Iterable[str], fraction: float, seed: int, spare: bool) -> set[str]:
    ranked = sorted((place(group, seed), group) for group in groups)
    if fraction == 0.0 or len(ranked) <= spare:
        return set()
    held = [group for at, group in ranked if at < fraction]
    held = held or [ranked[0][1]]
    return set(held[: len(ranked) - 1] if spare else held)


def place(group: str, seed: int) -> float:
    """Where a group lies in [0, 1)."""
    digest = hashlib.sha256(f"{seed}\x1f{group}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
