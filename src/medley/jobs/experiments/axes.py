"""Scales of plots: nice ticks, units that fit the values, linear or logarithmic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor, log10

_SPANS = ((86_400.0, "days", 2.0), (3600.0, "hours", 2.0), (60.0, "minutes", 3.0), (1.0, "seconds", 0.0))
_AMOUNTS = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "bytes"))
LOG_RATIO = 25.0  # values that differ by more are drawn on a logarithmic axis


@dataclass(frozen=True, slots=True)
class Scale:
    """From values to [0, 1]; `ticks` are (position, text); `unit` completes the axis's label."""

    low: float
    high: float
    log: bool
    unit: str
    ticks: tuple[tuple[float, str], ...]

    def at(self, value: float) -> float:
        if self.log:
            value = max(value, self.low)
            return (log10(value) - log10(self.low)) / (log10(self.high) - log10(self.low))
        return (value - self.low) / (self.high - self.low)


def scale(values: Sequence[float], kind: str = "number", *, zero: bool = True, may_log: bool = False) -> Scale:
    """A scale over all values. `kind`: number, seconds, bytes, percent; `zero` keeps 0 on a linear axis."""
    low, high = min(values, default=0.0), max(values, default=1.0)
    positive = [value for value in values if value > 0]
    if may_log and positive and high / min(positive) > LOG_RATIO:
        return _log(min(positive), high, kind)
    low = min(low, 0.0) if zero else low
    if high <= low:
        high = low + (abs(low) or 1.0)
    factor, unit = _unit(high, kind)
    step = _step((high - low) / factor)
    first, last = floor(low / factor / step + 1e-9), ceil(high / factor / step - 1e-9)
    ticks = tuple((number * step * factor, _number(number * step, step)) for number in range(first, last + 1))
    return Scale(first * step * factor, last * step * factor, False, unit, ticks)


def _log(low: float, high: float, kind: str) -> Scale:
    factor, unit = _unit(high if kind == "seconds" else low, kind)
    first, last = floor(log10(low / factor)), ceil(log10(high / factor) - 1e-9)
    marks = (1, 3) if last - first <= 3 else (1,)
    values = [mark * 10.0**power for power in range(first, last + 1) for mark in marks]
    values = [value for value in values if value <= 10.0**last]
    ticks = tuple((value * factor, f"{value:,.10g}") for value in values)
    return Scale(10.0**first * factor, 10.0**last * factor, True, unit, ticks)


def _unit(high: float, kind: str) -> tuple[float, str]:
    match kind:
        case "seconds":
            return next((size, name) for size, name, times in _SPANS if high >= size * times)
        case "bytes":
            return next(((size, name) for size, name in _AMOUNTS if high >= size), (1.0, "bytes"))
        case "percent":
            return 0.01, "%"
        case _:
            return 1.0, ""


def _step(span: float) -> float:
    rough = span / 4
    power = 10.0 ** floor(log10(rough))
    return float(next(mark * power for mark in (1, 2, 2.5, 5, 10) if mark * power >= rough * 0.999))


def _number(value: float, step: float) -> str:
    digits = next((n for n in range(12) if abs(round(step, n) - step) < 1e-6 * step), 12)
    return f"{value:,.{digits}f}"


def shown(value: float | None, kind: str = "number", half: float = 0.0) -> str:
    """A value with its unit and, where it has one, half its interval in the same unit; for tables and sentences."""
    if value is None:
        return "-"
    if kind == "dollars":
        return f"${_figures(value)}" + (f" ± {_figures(half)}" if half else "")
    factor, unit = _unit(abs(value), kind)
    short = {"days": "d", "hours": "h", "minutes": "min", "seconds": "s"}.get(unit, unit)
    return f"{_figures(value / factor)}{f' ± {_rough(half / factor)}' if half else ''} {short}".rstrip()


def _rough(value: float) -> str:
    return f"{value:.2g}" if abs(value) < 100 else f"{value:,.0f}"


def _figures(value: float) -> str:
    if value == int(value) and abs(value) < 1e6:
        return f"{int(value):,}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"
