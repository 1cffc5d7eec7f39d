"""C1 to C3: what is sealed is whole, what is called saved is there, what is good is kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from medley.protocol import messages as m
from medley.protocol.effects import Effect, Run
from medley.protocol.engine import ExportJob, SealCheckpoint
from medley.protocol.events import Event, Heard
from medley.protocol.ids import Generation, JobId, NodeId, Version
from medley.protocol.records import CheckpointSealed, Promoted, Record
from medley.runtimes.simulated.arithmetic import Blocks
from medley.runtimes.simulated.checkers.book import Account, Book
from medley.runtimes.simulated.checkers.training import compare
from medley.runtimes.simulated.checkers.violation import Violation
from medley.runtimes.simulated.watch import COORDINATOR, Watcher

if TYPE_CHECKING:
    from medley.runtimes.simulated.world import World


class Checkpoints(Watcher):
    """`wrote`: what each node said of the part that it wrote into which file; `visible`: what the vault has sealed."""

    def __init__(self, book: Book) -> None:
        self.book = book
        self.wrote: dict[tuple[JobId, str, NodeId], m.PartWritten] = {}
        self.visible: dict[JobId, set[tuple[Generation, Version]]] = {}

    def handled(
        self, world: World, who: NodeId, key: tuple[JobId, int] | None, event: Event, effects: Sequence[Effect]
    ) -> None:
        if who != COORDINATOR:
            return
        match event:
            case Heard(node, m.PartWritten() as said):
                self.wrote[said.job, said.file, node] = said
            case _:
                pass
        for effect in effects:
            match effect:
                case Run(SealCheckpoint() as command):
                    self._sealing(self.book.jobs[command.job], command)
                case Run(ExportJob(job, version)):
                    if version not in self.book.jobs[job].checkpoints:
                        raise Violation("C2", f"version {version} of {job} is exported and was never saved")
                case _:
                    pass

    def _sealing(self, account: Account, command: SealCheckpoint) -> None:
        shards = sorted(part.shard for part in command.parts)
        if shards != sorted(account.places):
            raise Violation("C1", f"checkpoint {command.version} is sealed with parts of shards {shards}")
        for part in command.parts:
            if (part.generation, part.version) != (command.generation, command.version):
                raise Violation("C1", f"checkpoint {command.version} has a part of {part.version}")
            primary = account.places[part.shard].primary
            if self.wrote.get((account.job, part.file, primary)) != part:
                raise Violation("S1", f"{part} is sealed, and {primary} did not say that")
        wanted = account.checkpoints[-(account.spec.checkpoint.keep - 1) :] if account.spec.checkpoint.keep > 1 else []
        if not {*wanted, command.version} <= set(command.keep):
            raise Violation("C3", f"only {command.keep} are kept, of {account.checkpoints}")
        if len(command.keep) > account.spec.checkpoint.keep + 1:
            raise Violation("S3", f"{len(command.keep)} checkpoints are kept")

    def sealed(self, world: World, command: SealCheckpoint, blocks: Blocks) -> None:
        account = self.book.jobs[command.job]
        self.visible.setdefault(command.job, set()).add((command.generation, command.version))
        assert account.layout is not None
        if sorted(blocks) != [b.index for b in account.layout.blocks]:
            raise Violation("C1", f"checkpoint {command.version} holds blocks {sorted(blocks)}")
        moment = account.history.get(command.version)
        if command.generation == account.generation and moment is not None:
            compare(account, moment.params, blocks, f"checkpoint {command.version}", "C1")

    def persisted(self, world: World, stream: str, record: Record) -> None:
        match record:
            case CheckpointSealed(version, generation):
                account = self.book.of(stream)
                if (generation, version) not in self.visible.get(account.job, ()):
                    raise Violation("C2", f"checkpoint {version} of generation {generation} is called saved and is not")
                if version > account.version:
                    raise Violation("C1", f"checkpoint {version} is ahead of version {account.version}")
            case Promoted(shard, primary, backup):
                self._seeded(self.book.of(stream), shard, primary, backup)
            case _:
                pass

    def _seeded(self, account: Account, shard: int, primary: NodeId, backup: NodeId) -> None:
        """A new backup loads the newest checkpoint; commits it never saw must not be missing there."""
        if backup and account.checkpoints[-1] != account.version:
            newest = account.checkpoints[-1]
            raise Violation("T4", f"{backup} backs {primary} up from checkpoint {newest}, not {account.version}")
