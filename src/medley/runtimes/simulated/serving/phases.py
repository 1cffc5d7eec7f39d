"""What a serving is at, in the words of the coverage table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from medley.roles.front.pipeline import Pipeline

if TYPE_CHECKING:
    from medley.runtimes.simulated.serving.world import ServingWorld

PHASES = ("prefill", "decode", "draft", "loading", "copying", "switching", "asking", "reserve copying")


def phases_of(world: ServingWorld) -> list[str]:
    layouts = world.front.role.layouts
    found = {phase for pipeline in layouts.pipelines for phase in _of(pipeline)}
    if layouts.loads:
        found.add("loading")
    for change in layouts.changes.values():
        if change.copying:
            found.add("copying")
    if any(m.process is not None and m.process.copying for m in world.machines.values()):
        found.add("reserve copying")
    return sorted(found)


def _of(pipeline: Pipeline) -> set[str]:
    found = {"asking"} if pipeline.state == "asking" else set()
    if pipeline.state == "pausing":
        found.add("switching")
    for batch in pipeline.flying.values():
        for flight in batch.rows:
            found.add("draft" if flight.drafted else "prefill" if flight.row.count > 1 else "decode")
    return found


def request_phase(world: ServingWorld, request: int) -> str:
    """Where this request is."""
    for pipeline in world.front.role.pipelines:
        found = pipeline.requests.get(request)
        if found is not None:
            return "decode" if found.generated else "prefill"
    return "queue"
