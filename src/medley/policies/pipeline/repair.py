"""Who takes the layers of a machine that died, and who holds layers in reserve: decisions with their reasons.

A machine that has the layers in memory already is worth any other: it costs a pause without loading. Where nobody
has them, the planner is asked anew (`planner`), which is not decided here.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from medley.policies.decision import Decision


@dataclass(frozen=True, slots=True)
class Held:
    """What a living machine has: layers in memory, whether a pipeline other than the broken one works on it, and
    whether it is distrusted: others that have as much are preferred.
    """

    name: str
    layers: frozenset[int]
    taken: bool = False
    doubtful: bool = False


@dataclass(frozen=True, slots=True)
class Part:
    """Layers [first, end) on a machine."""

    machine: str
    first: int
    end: int


def repair(hops: Sequence[Part], living: Sequence[Held]) -> Decision[tuple[Part, ...] | None]:
    """The same layout with the dead machines' layers on machines that hold them; None where some layer is nowhere."""
    alive = {m.name: m for m in living}
    out: list[Part] = []
    names: list[str] = []
    for hop in hops:
        holder = alive.get(hop.machine)
        if holder is not None and not holder.taken and holder.layers.issuperset(range(hop.first, hop.end)):
            out.append(hop)  # a machine that came back with an empty memory is no better than a dead one
            continue
        found = _cover(hop, [m for m in living if not m.taken])
        if found is None:
            return Decision(None, f"nobody else holds layers {hop.first} to {hop.end - 1}")
        out += found
        names += [f"{p.machine} has layers {p.first} to {p.end - 1} in reserve" for p in found]
    return Decision(merged(out), "; ".join(names) or "every machine of it is there")


def _cover(hop: Part, machines: Sequence[Held]) -> list[Part] | None:
    """The fewest machines that hold these layers, the longest run first."""
    out: list[Part] = []
    first = hop.first
    while first < hop.end:
        ends = [(_run(m.layers, first, hop.end), not m.doubtful, m.name) for m in machines]
        end, _, best = max(ends, default=(first, False, ""))
        if end == first:
            return None
        out.append(Part(best, first, end))
        first = end
    return out


def _run(layers: frozenset[int], first: int, end: int) -> int:
    while first < end and first in layers:
        first += 1
    return first


def merged(parts: Sequence[Part]) -> tuple[Part, ...]:
    """Neighbours on one machine are one hop."""
    out: list[Part] = []
    for part in parts:
        if out and out[-1].machine == part.machine and out[-1].end == part.first:
            out[-1] = Part(part.machine, out[-1].first, part.end)
        else:
            out.append(part)
    return tuple(out)


def reserves(
    hops: Sequence[Part], room: Mapping[str, int], layer_nbytes: int, trusted: Collection[str]
) -> Decision[dict[Part, str]]:
    """For each hop another machine that has room for its layers too; `room`: bytes free beside what is planned.

    The largest hop chooses first, the machine with the most room is taken, of those that are trusted if any of them has
    enough; a hop that finds none goes without.
    """
    left = dict(room)
    out: dict[Part, str] = {}
    without: list[str] = []
    for hop in sorted(hops, key=lambda h: (h.first - h.end, h.first)):
        need = (hop.end - hop.first) * layer_nbytes
        fits = [name for name, free in left.items() if free >= need and name != hop.machine]
        if not fits:
            without.append(f"layers {hop.first} to {hop.end - 1} have no reserve: no other machine has room for them")
            continue
        chosen = max(fits, key=lambda name: (name in trusted, left[name], name))
        left[chosen] -= need
        out[hop] = chosen
    kept = [
        f"{name} holds layers {hop.first} to {hop.end - 1} in reserve" for hop, name in sorted(out.items(), key=_by)
    ]
    return Decision(out, "; ".join([*kept, *without]))


def _by(item: tuple[Part, str]) -> int:
    return item[0].first
