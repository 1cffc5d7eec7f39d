"""What a role wants done, as values; its host does it and nothing else.

Ordering rule, the whole durability of Medley: effects of one `handle` are executed in order, and no `Send` or `Run`
leaves before every `Persist` that precedes it in the same list is on disk. A host may put several events into one
write.
"""

from __future__ import annotations

from dataclasses import dataclass

from medley.protocol.engine import Command
from medley.protocol.ids import NodeId
from medley.protocol.messages import FromNode, ToNode
from medley.protocol.records import Record


@dataclass(frozen=True, slots=True)
class Persist:
    stream: str
    record: Record


@dataclass(frozen=True, slots=True)
class Compact:
    """Replace the stream so far by this one record (persisted with the same guarantee)."""

    stream: str
    record: Record


@dataclass(frozen=True, slots=True)
class Send:
    """Coordinator to node."""

    node: NodeId
    message: ToNode


@dataclass(frozen=True, slots=True)
class Close:
    """End this node's stream (it was revoked, or another life of it arrived)."""

    node: NodeId
    reason: str


@dataclass(frozen=True, slots=True)
class Report:
    """Node role to coordinator."""

    message: FromNode


@dataclass(frozen=True, slots=True)
class Run:
    """To the role's own engine."""

    command: Command


@dataclass(frozen=True, slots=True)
class StopEngine:
    """End the engine's process; a later Run starts a fresh one."""

    reason: str


@dataclass(frozen=True, slots=True)
class Explain:
    """A decision and its sentence: to the log, the page, `medley explain`. Subject: a job, node, lease or update."""

    subject: str
    text: str


@dataclass(frozen=True, slots=True)
class Reject:
    """A peer broke the contract; nothing changed."""

    peer: str
    reason: str


Effect = Persist | Compact | Send | Close | Report | Run | StopEngine | Explain | Reject
