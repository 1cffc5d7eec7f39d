"""What is going on, in the words of the coverage table: at a machine, and at the coordinator."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from medley.roles.run import Run
from medley.roles.worker import Worker

if TYPE_CHECKING:
    from medley.runtimes.simulated.node import Node
    from medley.runtimes.simulated.world import World

MACHINE = ("worker wanting", "worker pulling", "worker computing", "worker measuring", "shard loading", "shard ready")
JOB = (
    *("preparing", "loading", "leases held", "pull under way", "update under way", "checkpoint part under way"),
    *("seal under way", "measurement under way", "shard lost", "finishing"),
)


def at_machine(node: Node) -> Iterator[str]:
    """Its roles' phases."""
    for hosted in node.roles.values():
        role = hosted.role
        if isinstance(role, Worker):
            yield f"worker {role.phase if role.engine == 'ready' else 'loading'}"
        else:
            yield "shard ready" if role.engine == "ready" else "shard loading"


def everywhere(world: World) -> Iterator[str]:
    """At the coordinator and at all machines."""
    yield from at_coordinator(world)
    for node in world.nodes.values():
        yield from at_machine(node)


def at_coordinator(world: World) -> Iterator[str]:
    """What its runs are at; nothing while it is dead."""
    if world.coordinator is not None:
        for run in world.coordinator.runs.values():
            if not run.over:
                yield from _at(run)


def _at(run: Run) -> Iterator[str]:
    ctx = run.ctx
    if ctx.preparing:
        yield "preparing"
    if ctx.plan is None:
        return
    if ctx.state.places and not ctx.shards_ready():
        yield "loading"
    if ctx.ledger.leases:
        yield "leases held"
    if any(ctx.pins.values()):
        yield "pull under way"
    if ctx.roster.updates:
        yield "update under way"
    if ctx.saving is not None:
        yield "seal under way" if ctx.saving.sealing else "checkpoint part under way"
    if ctx.measuring >= 0:
        yield "measurement under way"
    if ctx.lost_shards:
        yield "shard lost"
    if run.state.state == "finishing":
        yield "finishing"
