"""What happens to a role: a message, a report of its engine, a tick, a change of connection, a person's wish."""

from __future__ import annotations

from dataclasses import dataclass

from medley.protocol.engine import Report
from medley.protocol.hosting import HostingEvent
from medley.protocol.ids import JobId, NodeId
from medley.protocol.messages import FromNode, ToNode


@dataclass(frozen=True, slots=True)
class Tick:
    """Time passed. Roles decide about deadlines here, and only here. `wall_ns` is for people to read."""

    wall_ns: int = 0


@dataclass(frozen=True, slots=True)
class Heard:
    """The coordinator hears a node."""

    node: NodeId
    message: FromNode


@dataclass(frozen=True, slots=True)
class Told:
    """A node's role hears the coordinator."""

    message: ToNode


@dataclass(frozen=True, slots=True)
class EngineSaid:
    """A role hears its own engine; the coordinator hears its vault and its preparers."""

    report: Report


@dataclass(frozen=True, slots=True)
class Lost:
    """The coordinator lost a node's stream."""

    node: NodeId
    boot: str


@dataclass(frozen=True, slots=True)
class Submit:
    job: JobId
    spec: str
    wall_ns: int


@dataclass(frozen=True, slots=True)
class Cancel:
    job: JobId
    wall_ns: int


@dataclass(frozen=True, slots=True)
class Resume:
    job: JobId
    wall_ns: int


@dataclass(frozen=True, slots=True)
class Expel:
    """A node is refused from now on; that is in the log already."""

    node: NodeId
    reason: str


@dataclass(frozen=True, slots=True)
class Stop:
    """Save everything and stop: a signal, or the end of a person's patience."""


CoordinatorEvent = Tick | Heard | Lost | EngineSaid | Submit | Cancel | Resume | Expel | Stop | HostingEvent
NodeEvent = Tick | Told | EngineSaid
Event = CoordinatorEvent | NodeEvent
