"""Numbers, moments and tables as a terminal shows them. Plain text: what a pipe can read, a person can too."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime

from medley.protocol.ids import NS_PER_S

UNKNOWN = "-"


def count(number: float | None) -> str:
    """A number of things, short: 950, 12.3k, 4.5M."""
    if number is None:
        return UNKNOWN
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if number >= limit:
            return f"{number / (1e3 if unit == 'k' else limit):.1f}{unit}"
    return f"{number:.0f}"


def nbytes(number: float) -> str:
    """Bytes in binary units."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1024:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1024
    return f"{number:.1f} TiB"


def duration(seconds: float | None) -> str:
    """A time span with its two largest units: 42 s, 3 m 05 s, 2 h 10 m, 3 d 4 h."""
    if seconds is None:
        return UNKNOWN
    whole = max(round(seconds), 0)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} m {whole % 60:02d} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} m"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def figure(number: float | None, digits: int = 4) -> str:
    return UNKNOWN if number is None else f"{number:.{digits}g}"


def percent(fraction: float | None) -> str:
    return UNKNOWN if fraction is None else f"{100 * fraction:.1f} %"


def moment(wall_ns: int) -> str:
    """A wall-clock time in this machine's zone."""
    return datetime.fromtimestamp(wall_ns / NS_PER_S).strftime("%Y-%m-%d %H:%M:%S") if wall_ns else UNKNOWN


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines with aligned columns, the head first."""
    every = [tuple(head), *(tuple(row) for row in rows)]
    widths = [max(len(row[column]) for row in every) for column in range(len(head))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in every]


def pairs(items: Iterable[tuple[str, str]]) -> list[str]:
    """Lines of "name  value", aligned."""
    known = list(items)
    width = max((len(name) for name, _ in known), default=0)
    return [f"{name.ljust(width)}  {value}" for name, value in known]
