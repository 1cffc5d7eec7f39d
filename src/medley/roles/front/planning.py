"""From machines that are there to layers on each of them: by the planner, or as a person pinned it.

Parts are what a plan says and what a layout becomes; a tuple of them is one pipeline.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from medley.policies.decision import Decision
from medley.policies.pipeline.describe import Links, ModelShape, StagePlan, Wanted
from medley.policies.pipeline.drift import slowed
from medley.policies.pipeline.planner import plan
from medley.policies.pipeline.repair import Part
from medley.protocol.errors import UserError
from medley.protocol.messages import Address
from medley.protocol.stages.words import Hop, WireType
from medley.roles.front.machines import MachineView

Parts = tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class FrontOptions:
    """`model`: the JSON of `Load.model`. `pins`: as in `medley plan`. `survive`: machines that may die without loading.

    `expected`: so many machines are waited for (at most a minute) before the first plan.
    """

    model: str
    shape: ModelShape
    wanted: Wanted
    front: Address
    links: Links
    wire: WireType = "bf16"
    pins: str = ""
    survive: int = 0
    expected: int = 1
    reach: bool = False  # links between machines are measured before they are counted on
    narrow: bool = False  # hidden states may travel in int8, where a link is what a token waits for
    guesses: bool = False  # a draft model answers `Guess`


def planned(options: FrontOptions, ready: Sequence[MachineView]) -> Decision[list[Parts]]:
    """One tuple of parts for each replica; none, with the reason, where it cannot be."""
    if options.pins:
        return _pinned(options, ready)
    machines = [slowed(view.described(), view.slowness) for view in ready if view.measured is not None]
    decision = plan(options.shape, machines, options.links, options.wanted)
    if options.survive:
        spare = [replace(m, memory_nbytes=m.memory_nbytes // 2) for m in machines]
        roomy = plan(options.shape, spare, options.links, options.wanted)
        decision = decision if roomy.plan is None else roomy
    if decision.plan is None:
        return Decision([], decision.reason)
    out = "".join(f"; {left.machine} stays out: {left.reason}" for left in decision.plan.left_out)
    return Decision([parts_of_plan(one) for one in decision.plan.layout.replicas], decision.reason + out)


def _pinned(options: FrontOptions, ready: Sequence[MachineView]) -> Decision[list[Parts]]:
    layouts = read_pins(options.pins)
    missing = sorted({part.machine for one in layouts for part in one} - {view.node for view in ready})
    if missing:
        return Decision([], f"{', '.join(missing)} must come before the pinned layout can begin")
    return Decision(layouts, f"pinned by hand: {options.pins}")


def parts_of(hops: Iterable[Hop]) -> tuple[Part, ...]:
    return tuple(Part(hop.node, hop.first, hop.end) for hop in hops)


def back_again(hops: Iterable[Hop], living: Iterable[MachineView]) -> Parts | None:
    """The same layout, where every machine of it is there (one of them with an empty memory)."""
    names = {view.node for view in living}
    parts = parts_of(hops)
    return parts if all(part.machine in names for part in parts) else None


def anew(
    options: FrontOptions, hops: Iterable[Hop], trusted: Sequence[MachineView], there: Sequence[MachineView]
) -> Parts | None:
    """For one pipeline: a plan of the machines that are trusted, else of all that are there."""
    parts = _one_planned(options, trusted) or back_again(hops, there)
    return _one_planned(options, there) if parts is None and len(there) > len(trusted) else parts


def _one_planned(options: FrontOptions, ready: Sequence[MachineView]) -> Parts | None:
    layouts = planned(options, ready).plan if ready else []
    return layouts[0] if layouts else None


def parts_of_plan(stages: Iterable[StagePlan]) -> tuple[Part, ...]:
    return tuple(Part(stage.machine, stage.first, stage.end) for stage in stages)


def read_pins(text: str) -> list[tuple[Part, ...]]:
    """ "a=14,b=8" as parts, replicas apart by "/"; their sums are checked where the model is known (`medley plan`)."""
    out = []
    for one in text.split("/"):
        parts, first = [], 0
        for pair in one.split(","):
            name, equals, layers = pair.strip().rpartition("=")
            if not equals or not layers.isdecimal() or not int(layers):
                raise UserError(f"--pin '{pair.strip()}' is not MACHINE=LAYERS, as in desktop=14,laptop=8")
            parts.append(Part(name, first, first + int(layers)))
            first += int(layers)
        out.append(tuple(parts))
    return out


def runs(layers: set[int]) -> list[tuple[int, int]]:
    """Contiguous runs [first, end)."""
    out: list[tuple[int, int]] = []
    for layer in sorted(layers):
        if out and out[-1][1] == layer:
            out[-1] = (out[-1][0], layer + 1)
        else:
            out.append((layer, layer + 1))
    return out
