"""T1 to T5 and J3, J4 beyond the log: what roles say and what engines hold, against the book."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from medley.policies import schedule
from medley.protocol import messages as m
from medley.protocol.effects import Effect, Persist, Report, Run, Send
from medley.protocol.engine import Apply
from medley.protocol.events import Event, Told
from medley.protocol.ids import Generation, JobId, NodeId, UpdateId, Version
from medley.protocol.records import Committed, Record
from medley.runtimes.simulated.arithmetic import Blocks
from medley.runtimes.simulated.checkers.book import Account, Book
from medley.runtimes.simulated.checkers.violation import Violation
from medley.runtimes.simulated.watch import COORDINATOR, Watcher

if TYPE_CHECKING:
    from medley.runtimes.simulated.world import World


UNMEASURABLE = 20  # failures in a row, after which a job goes on without


class Training(Watcher):
    """`said` are updates as their workers announced them; `durable` the newest version that anybody may hear of."""

    def __init__(self, book: Book) -> None:
        self.book = book
        self.said: dict[tuple[JobId, UpdateId], tuple[NodeId, m.UpdateReady]] = {}
        self.held: dict[tuple[JobId, UpdateId], set[tuple[NodeId, int]]] = {}  # who said that it has staged which part
        self.dismissed: dict[tuple[JobId, UpdateId], Generation] = {}  # what a worker was told to forget
        self.durable: dict[JobId, Version] = {}

    def started(self, world: World) -> None:
        self.durable = {job: account.version for job, account in self.book.jobs.items()}

    def persisted(self, world: World, stream: str, record: Record) -> None:
        if isinstance(record, Committed):
            self._members(world, self.book.of(stream), record)

    def _members(self, world: World, account: Account, record: Committed) -> None:
        for member in record.members:
            said = self.said.get((account.job, member.update))
            if said is None or said[0] != member.node:
                raise Violation("J3", f"{member.update} is merged, {member.node} never announced it")
            report = said[1]
            if report.generation != account.generation:
                raise Violation("J3", f"{member.update} of generation {report.generation} in {account.generation}")
            if self.dismissed.get((account.job, member.update)) == account.generation:
                raise Violation("T2", f"{member.update} is merged after {member.node} was told to forget it")
            if report.leases != member.leases:
                raise Violation("S2", f"{member.update} was announced with {report.leases}, merged as {member.leases}")
            if not report.finite:
                raise Violation("T2", f"{member.update} is not finite and is merged")
            _stale(account, record, report, member.staleness, member.weight)
            self._staged(account, member.update)
        _rate(account, record)
        run = world.run_of(account.job)
        if run is None or run.ctx.measure_failures < UNMEASURABLE:
            _measured(account, record)

    def _staged(self, account: Account, update: UpdateId) -> None:
        held = self.held.pop((account.job, update), set())
        for place in account.places.values():
            for node in filter(None, (place.primary, place.backup)):
                if (node, place.shard) not in held:
                    raise Violation("T4", f"{update} is merged, {node} never had its part for shard {place.shard}")

    # -- what is said -------------------------------------------------------------------------------------------

    def handled(
        self, world: World, who: NodeId, key: tuple[JobId, int] | None, event: Event, effects: Sequence[Effect]
    ) -> None:
        if who == COORDINATOR:
            self._coordinator(effects)
        if key is None:
            return
        match event:
            case Told(m.Outcome() as verdict) if verdict.verdict != "committed":
                self._forgets(verdict)
            case _:
                pass
        for effect in effects:
            match effect:
                case Report(m.UpdateReady() as message):
                    self.said[message.job, message.update] = (who, message)
                case Report(m.Staged() as message):
                    self.held.setdefault((message.job, message.update), set()).add((who, message.shard))
                case Run(Apply() as command):
                    self._applies(key, command)
                case _:
                    pass

    def _coordinator(self, effects: Sequence[Effect]) -> None:
        for effect in effects:
            match effect:
                case Persist(stream, Committed(number)):
                    self.durable[stream.removeprefix("job/")] = number
                case Send(_, m.Commit() as message):
                    self._told(message)
                case Send(_, m.Outcome() as message):
                    self._outcome(message)
                case _:
                    pass

    def _told(self, message: m.Commit) -> None:
        account = self.book.jobs[message.job]
        if message.number > self.durable.get(message.job, 0):
            raise Violation("T1", f"shard {message.shard} hears of commit {message.number} before it is in the log")
        moment = account.history.get(message.number)
        if moment is None or moment.record is None:
            return  # it was taken back later in the same step
        record = moment.record
        if message.generation == account.generation and (
            record.wire_members() != message.members or record.lr != message.lr
        ):
            raise Violation("T4", f"commit {message.number} is sent as {message.members}, the log has {record.members}")

    def _forgets(self, message: m.Outcome) -> None:
        """A worker lets go of an update; from then on nobody may merge it."""
        account = self.book.jobs[message.job]
        if message.generation == account.generation:
            self.dismissed[message.job, message.update] = message.generation

    def _outcome(self, message: m.Outcome) -> None:
        account = self.book.jobs[message.job]
        if message.generation != account.generation:
            return
        truth = account.decided.get(message.update, "dropped")
        if message.verdict == "committed" and truth != "committed":
            raise Violation("T1", f"{message.update} is called committed, the log says {truth}")
        recent = any(
            moment.record is not None
            and number > account.checkpoints[0]
            and any(member.update == message.update for member in moment.record.members)
            for number, moment in account.history.items()
        )
        if message.verdict != "committed" and truth == "committed" and recent:
            raise Violation("T1", f"{message.update} is called '{message.verdict}', the log has it as committed")

    def _applies(self, key: tuple[JobId, int], command: Apply) -> None:
        account = self.book.jobs[key[0]]
        if command.generation != account.generation:
            return
        moment = account.history.get(command.number)
        if moment is None or moment.record is None:
            raise Violation("T1", f"shard {key[1]} applies commit {command.number}, which is not in the log")
        record = moment.record
        if record.wire_members() != command.members or record.lr != command.lr:
            raise Violation("T4", f"shard {key[1]} applies {command.members} as version {command.number}")

    # -- what engines hold ----------------------------------------------------------------------------------------

    def applied(
        self, world: World, job: JobId, shard: int, generation: Generation, version: Version, blocks: Blocks
    ) -> None:
        self._same(job, generation, version, blocks, f"shard {shard} at version {version}", "T1")

    def pulled(self, world: World, job: JobId, generation: Generation, version: Version, blocks: Blocks) -> None:
        self._same(job, generation, version, blocks, f"a pull of version {version}", "T4")

    def _same(self, job: JobId, generation: Generation, version: Version, blocks: Blocks, what: str, code: str) -> None:
        account = self.book.jobs[job]
        if generation != account.generation:
            return  # fenced: whatever it holds, nobody asks any more
        moment = account.history.get(version)
        if moment is None:
            raise Violation("T5", f"{what}: nobody committed that version in generation {generation}")
        compare(account, moment.params, blocks, what, code)


def compare(account: Account, wanted: np.ndarray, blocks: Blocks, what: str, code: str) -> None:
    """Every block holds what the book says, to the bit."""
    assert account.layout is not None
    layout = account.layout
    for index, part in blocks.items():
        block = layout.blocks[index]
        there = wanted[block.offset : block.offset + block.numel]
        if not np.array_equal(part, there):
            raise Violation(code, f"{what} holds {part} in block {index} instead of {there}")


def _stale(account: Account, record: Committed, report: m.UpdateReady, staleness: int, weight: float) -> None:
    sync = account.spec.train.sync
    true = record.number - 1 - report.base
    bound = {"sync": 0}.get(sync.mode, sync.staleness_bound * (4 if sync.staleness_adaptive else 1))
    if not 0 <= true <= max(bound, 1 if sync.staleness_adaptive and sync.mode != "sync" else 0):
        raise Violation("T3", f"{report.update} is {true} commits old, the bound is {bound}")
    oldest = record.number - 1 - report.oldest_base
    if not true <= staleness <= max(oldest, true):
        raise Violation("T3", f"{report.update} is {true} to {oldest} commits old and counts as {staleness}")
    if account.spec.train.aggregation == "sum" and weight != (1 + staleness) ** -sync.staleness_power:
        raise Violation("T3", f"{report.update} counts {weight} at an age of {staleness}")


def _rate(account: Account, record: Committed) -> None:
    """The learning rate is the schedule's, at what the log has. It counts samples, so it needs no clock."""
    train = account.spec.train
    if train.sync.mode == "local-sgd" or train.max_minutes > 0 or train.aggregation != "sum":
        return
    before = account.history[record.number - 1]
    progress = int(before.used.sum()) / account.total()
    wanted = schedule.rate(train.optimizer, min(1.0, progress), account.plateau)
    if record.lr != wanted:
        raise Violation("C4", f"commit {record.number} has the rate {record.lr}, the schedule says {wanted}")


def _measured(account: Account, record: Committed) -> None:
    """Where a measurement sets the rate of a run that must repeat exactly, no commit comes before it."""
    train, version = account.spec.train, record.number - 1
    assert account.plan is not None
    every = train.eval_every_commits
    if not (train.deterministic and train.optimizer.schedule == "plateau" and account.plan.heldout and every > 0):
        return
    last = account.plateaus[-1][0] if account.plateaus else -1
    if last != version and (last < 0 or version - last >= every):
        raise Violation("C4", f"commit {record.number} did not wait for the measurement of {version}; last was {last}")
