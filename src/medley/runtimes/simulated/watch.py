"""What the checkers see of a world: every step of a role with all that came of it, and the engines' values where the
promises are about values. A watcher changes nothing; what it finds wrong it raises.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from medley.protocol.effects import Effect
from medley.protocol.engine import SealCheckpoint
from medley.protocol.events import Event
from medley.protocol.ids import Generation, JobId, NodeId, Version
from medley.protocol.records import Record
from medley.runtimes.simulated.arithmetic import Blocks

if TYPE_CHECKING:
    from medley.runtimes.simulated.world import World

COORDINATOR = "coordinator"


class Watcher:
    """Everything that can be watched; each method does nothing until it is overridden."""

    def persisted(self, world: World, stream: str, record: Record) -> None:
        """A record is durable (or stands for the whole of its stream, if it is a Snapshot)."""

    def handled(
        self, world: World, who: NodeId, key: tuple[JobId, int] | None, event: Event, effects: Sequence[Effect]
    ) -> None:
        """A role handled an event, and its host carried all effects out. `key` is None for the coordinator."""

    def started(self, world: World) -> None:
        """A coordinator has folded its log."""

    def pulled(self, world: World, job: JobId, generation: Generation, version: Version, blocks: Blocks) -> None:
        """A worker's engine holds one version, from all shards."""

    def applied(
        self, world: World, job: JobId, shard: int, generation: Generation, version: Version, blocks: Blocks
    ) -> None:
        """A shard's engine is at this version, by a commit or by loading it."""

    def sealed(self, world: World, command: SealCheckpoint, blocks: Blocks) -> None:
        """A checkpoint became visible; `blocks` is what all its parts hold."""

    def exported(self, world: World, job: JobId, version: Version, blocks: Blocks) -> None:
        """A finished job's parameters left the pool."""
