"""Whether another layout is worth the move: better by a quarter, or not at all.

A move costs a copy of the KV cache and a pause of a token or two, and measured times wobble; the quarter is what Petals
found to keep a swarm from moving for ever (Borzunov et al., 2023).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from medley.policies.decision import Decision
from medley.policies.pipeline.describe import Layout, Links, Machine, ModelShape, Plan, Times, Wanted
from medley.policies.pipeline.ground import ground
from medley.policies.pipeline.planner import plan, value

BETTER = 1.25


def slowed(machine: Machine, factor: float) -> Machine:
    """The same machine, so many times slower than it was measured."""

    def times(seen: Times) -> Times:
        return Times(seen.batch1_s * factor, seen.batch8_s * factor, seen.prefill256_s * factor)

    return replace(machine, layer=times(machine.layer), head=times(machine.head))


def moved(
    model: ModelShape, machines: Sequence[Machine], links: Links, wanted: Wanted, present: Layout
) -> Decision[Plan | None]:
    """A layout to move to, or None with the reason to stay. `present` may use only these machines."""
    best = plan(model, machines, links, wanted)
    if best.plan is None or best.plan.layout == present:
        return Decision(None, best.reason if best.plan is None else "the present layout is the best there is")
    here = ground(model, machines, links, wanted)
    now, then = value(here, present), value(here, best.plan.layout)
    if then < BETTER * now:
        return Decision(None, f"{then:.3g} tokens/s instead of {now:.3g} are not worth a move")
    return Decision(best.plan, f"{then:.3g} tokens/s instead of {now:.3g}: {best.reason}")
