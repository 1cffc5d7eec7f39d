"""What happened in a world, for those who make curves, tables and bills of it. Times are virtual nanoseconds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from medley.protocol.ids import JobId, NodeId, Version


@dataclass(frozen=True, slots=True)
class Committed:
    at_ns: int
    job: JobId
    version: Version
    members: tuple[NodeId, ...]
    staleness: tuple[int, ...]  # of each member
    samples: int
    tokens: int
    loss: float  # mean training loss of the members
    opened_ns: int  # when the oldest member's base was granted


@dataclass(frozen=True, slots=True)
class Refused:
    """An update that was carried or dropped."""

    at_ns: int
    job: JobId
    node: NodeId
    verdict: str
    reason: str


@dataclass(frozen=True, slots=True)
class Evaluation:
    at_ns: int
    job: JobId
    version: Version
    loss: float
    accuracy: float


@dataclass(frozen=True, slots=True)
class Busy:
    """An engine computed, or a transfer ran, from `start_ns` to `at_ns`."""

    at_ns: int
    start_ns: int
    node: NodeId
    job: JobId
    what: str  # compute, measure, pull, push, apply, load


@dataclass(frozen=True, slots=True)
class Moved:
    """Payload bytes that left one machine for another."""

    at_ns: int
    source: NodeId
    target: NodeId
    plane: str  # control, tensors
    nbytes: int


@dataclass(frozen=True, slots=True)
class JobState:
    at_ns: int
    job: JobId
    state: str
    reason: str


@dataclass(frozen=True, slots=True)
class NodeState:
    at_ns: int
    node: NodeId
    state: str  # up, down, left, wanted (by the autoscaler), interrupted


@dataclass(frozen=True, slots=True)
class Decided:
    """A sentence of a role or policy."""

    at_ns: int
    subject: str
    text: str


@dataclass(frozen=True, slots=True)
class Struck:
    """A fault met an operation."""

    at_ns: int
    fault: str
    operation: str


Fact = Committed | Refused | Evaluation | Busy | Moved | JobState | NodeState | Decided | Struck
Observer = Callable[[Fact], None]
