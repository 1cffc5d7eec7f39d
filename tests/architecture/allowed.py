"""The list of allowed exceptions, `allowed.txt`: which rule, which file, why."""

from __future__ import annotations

from functools import cache
from pathlib import Path

_LIST = Path(__file__).with_name("allowed.txt")
RULES = ("sleep", "except", "length")


@cache
def allowed(rule: str) -> frozenset[str]:
    """The files (relative to the repository) in which this rule may be broken."""
    return frozenset(path for name, path, _ in entries() if name == rule)


def entries() -> list[tuple[str, str, str]]:
    lines = [line for line in _LIST.read_text(encoding="utf-8").splitlines() if line.strip() and line[0] != "#"]
    return [(rule, path, reason) for rule, path, reason in (line.split(None, 2) for line in lines)]


def check(rule: str, breaches: list[tuple[str, str]]) -> list[str]:
    """What to complain about: breaches outside the list, and entries of the list that nothing needs.

    `breaches` are (file, sentence) pairs.
    """
    permitted = allowed(rule)
    outside = [sentence for path, sentence in breaches if path not in permitted]
    idle = sorted(permitted - {path for path, _ in breaches})
    return outside + [f"allowed.txt: '{rule} {path}' is no longer needed" for path in idle]
