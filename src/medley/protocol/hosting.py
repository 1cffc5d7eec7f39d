"""What a front wants of the coordinator, as events: machines to serve with, news of them, and an end.

A serving is never persisted. It lives for as long as its front asks for news, so every event may be said again.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from medley.protocol.ids import JobId, NodeId
from medley.protocol.messages import Address
from medley.protocol.spec import Schedule


@dataclass(frozen=True, slots=True)
class ServingSpec:
    """What a serving asks of the scheduler. `machines`: these and no others, empty: any. `threads` 0: each its own."""

    name: str = "serving"
    machines: tuple[NodeId, ...] = ()
    threads: int = 0
    schedule: Schedule = field(default_factory=Schedule)


@dataclass(frozen=True, slots=True)
class BeginServing:
    """A front listens at `front` and wants machines. Said again with a known job, it goes on with what that has."""

    job: JobId
    front: Address
    spec: ServingSpec
    wall_ns: int


@dataclass(frozen=True, slots=True)
class FrontAsks:
    """The front of this serving lives."""

    job: JobId


@dataclass(frozen=True, slots=True)
class SuspectStage:
    """This machine's engine does not do its work. `since` (0: whichever it is) names the engine that is meant."""

    job: JobId
    node: NodeId
    since: int
    reason: str


@dataclass(frozen=True, slots=True)
class ReleaseMachines:
    """The front has no use for these machines; it has for those that it named before and does not name now."""

    job: JobId
    nodes: frozenset[NodeId]


@dataclass(frozen=True, slots=True)
class EndServing:
    job: JobId
    reason: str


HostingEvent = BeginServing | FrontAsks | SuspectStage | ReleaseMachines | EndServing
