"""J1, J2, J4, J7, J8: the log's own rules, the fold, and giving up what fails everywhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from medley.protocol import messages as m
from medley.protocol.codec import text
from medley.protocol.effects import Effect
from medley.protocol.events import Event, Heard, Resume
from medley.protocol.ids import JobId, LeaseId, NodeId
from medley.protocol.records import Placed, Record, Returned, Snapshot
from medley.roles.coordinator import Coordinator
from medley.runtimes.simulated.checkers.book import Book, Held
from medley.runtimes.simulated.checkers.violation import Violation
from medley.runtimes.simulated.watch import COORDINATOR, Watcher

if TYPE_CHECKING:
    from medley.runtimes.simulated.world import World

POISON = 4  # failures of one span
EVERY = 32  # events between two comparisons of state and fold


class Jobs(Watcher):
    """`fold` is a coordinator that never lives: it only folds what is durable, record by record."""

    def __init__(self, book: Book) -> None:
        self.book = book
        self.fold = Coordinator(0)
        self.events = 0
        self.failures: dict[tuple[JobId, int, int], int] = {}
        self.returned: dict[tuple[JobId, LeaseId], Held] = {}  # in the step at hand

    def persisted(self, world: World, stream: str, record: Record) -> None:
        if isinstance(record, Snapshot):
            run = self.fold.runs[stream.removeprefix("job/")]
            if text(run.state) != record.state:
                raise Violation("J7", f"a snapshot of {stream} is not the fold of what it replaces")
        else:
            if isinstance(record, Returned):
                account = self.book.of(stream)
                self.returned |= {(account.job, n): account.leases[n] for n in record.leases if n in account.leases}
            self.book.follow(stream, record)
        self.fold.restore([(stream, record)])  # type: ignore[list-item]
        if isinstance(record, Placed):
            self.failures.clear()

    def started(self, world: World) -> None:
        self.failures.clear()
        self._same(world)

    def handled(
        self, world: World, who: NodeId, key: tuple[JobId, int] | None, event: Event, effects: Sequence[Effect]
    ) -> None:
        if who != COORDINATOR:
            return
        match event:
            case Heard(node, m.LeaseFailed() as said):
                self._failed(node, said)
            case Resume():
                self.failures.clear()
            case _:
                pass
        self.returned.clear()
        self.events += 1
        if self.events % EVERY == 0:
            self._same(world)

    def _same(self, world: World) -> None:
        if world.coordinator is None:
            return
        for job, run in world.coordinator.runs.items():
            live, again = text(run.state), text(self.fold.runs[job].state)
            if live != again:
                raise Violation("J7", f"the state of {job} is not the fold of its log: {_differ(live, again)}")
        if world.coordinator.revoked.keys() < self.fold.revoked.keys():
            raise Violation("S1", f"the coordinator forgot that {sorted(self.fold.revoked)} were revoked")

    def _failed(self, node: NodeId, said: m.LeaseFailed) -> None:
        """Samples that fail everywhere end the job with a reason, rather than being tried for ever."""
        account = self.book.jobs.get(said.job)
        if account is None or said.generation != account.generation or said.fatal:
            return
        for lease in said.leases:
            held = self.returned.get((said.job, lease))
            if held is None or held.node != node:
                continue
            key = (said.job, held.span.epoch, held.span.start)
            self.failures[key] = self.failures.get(key, 0) + 1
            if self.failures[key] >= POISON and account.state != "failed":
                raise Violation("J4", f"{held.span} failed {self.failures[key]} times and {said.job} goes on")


def _differ(live: str, again: str) -> str:
    at = next((i for i, pair in enumerate(zip(live, again, strict=False)) if pair[0] != pair[1]), 0)
    return f"...{live[max(0, at - 80) : at + 80]}... against ...{again[max(0, at - 80) : at + 80]}..."
