"""In which format hidden states travel between the hops of a layout: as computed, or in eight bits where a link is
what a token waits for.

Only measured links and machines count: without figures nothing is made coarser.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

from medley.policies.decision import Decision
from medley.policies.pipeline.drift import slowed
from medley.policies.pipeline.repair import Part
from medley.protocol.ids import NodeId
from medley.protocol.stages.words import WireType
from medley.roles.front.distances import Distances
from medley.roles.front.machines import MachineView
from medley.roles.front.planning import FrontOptions

ROWS = 8  # of a usual batch


def wired(
    options: FrontOptions, parts: Sequence[Part], known: Mapping[NodeId, MachineView], distances: Distances
) -> Decision[WireType]:
    """The format for this layout; a sentence where it is another one than hidden states are computed in."""
    links = _links(options, parts, distances)
    if not options.narrow or options.wire == "fp32" or not links:
        return Decision(options.wire, "")
    views = [known[part.machine] for part in parts]
    if any(view.measured is None for view in views):
        return Decision(options.wire, "")
    stage_s = max(_stage_s(options, part, view) for part, view in zip(parts, views, strict=True))
    link_s, ends = max(links)
    if link_s <= stage_s:
        return Decision(options.wire, "")
    times = f"{link_s * 1e3:.2g} ms for {ROWS} rows, the slowest stage {stage_s * 1e3:.2g} ms"
    return Decision("int8", f"{ends} takes {times}: hidden states travel in int8")


def _links(options: FrontOptions, parts: Sequence[Part], distances: Distances) -> list[tuple[float, str]]:
    """Seconds of the measured ones for a batch's hidden states, and what to call them."""
    out = []
    for here, there in itertools.pairwise(part.machine for part in parts):
        link = distances.between(here, there)
        if link is not None and here != there:
            seconds = ROWS * options.shape.wire_nbytes / link.bandwidth_bytes_per_s
            out.append((seconds, f"the link from {here} to {there}"))
    return out


def _stage_s(options: FrontOptions, part: Part, view: MachineView) -> float:
    machine = slowed(view.described(), view.slowness)
    head = machine.head.over(ROWS) if part.end == options.shape.layers else 0.0
    return (part.end - part.first) * machine.layer.over(ROWS) + head
