"""D1 to D3: the coordinator's ledger against the book, checkpoint by checkpoint, and the whole at the end."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from medley.protocol import messages as m
from medley.protocol.effects import Effect, Persist, Send
from medley.protocol.engine import SealCheckpoint
from medley.protocol.events import Event
from medley.protocol.ids import JobId, LeaseId, NodeId, Version
from medley.protocol.messages import Span
from medley.protocol.records import Backed, Leased
from medley.roles.ledger import LedgerState
from medley.runtimes.simulated.arithmetic import Blocks
from medley.runtimes.simulated.checkers.book import Account, Book, Used, in_order
from medley.runtimes.simulated.checkers.training import compare
from medley.runtimes.simulated.checkers.violation import Violation
from medley.runtimes.simulated.watch import COORDINATOR, Watcher

if TYPE_CHECKING:
    from medley.runtimes.simulated.world import World

EVERY = 16  # events between two comparisons of the whole ledger


class Samples(Watcher):
    def __init__(self, book: Book) -> None:
        self.book = book
        self.events = 0
        self.known: dict[JobId, set[LeaseId]] = {}

    def started(self, world: World) -> None:
        self.known = {job: set(account.numbers) for job, account in self.book.jobs.items()}

    def handled(
        self, world: World, who: NodeId, key: tuple[JobId, int] | None, event: Event, effects: Sequence[Effect]
    ) -> None:
        if who != COORDINATOR:
            return
        for effect in effects:
            match effect:
                case Persist(stream, Leased(lease) | Backed(lease)):
                    self.known.setdefault(stream.removeprefix("job/"), set()).add(lease)
                case Send(node, m.Lease() as message):
                    self._leased(node, message)
                case _:
                    pass
        self.events += 1
        if self.events % EVERY == 0 and world.coordinator is not None:
            for job, account in self.book.jobs.items():
                run = world.coordinator.runs.get(job)
                if run is not None and run.state.samples is not None:
                    _same_ledger(account, run.state.samples)

    def _leased(self, node: NodeId, message: m.Lease) -> None:
        if message.lease not in self.known.get(message.job, ()):
            raise Violation("D3", f"{node} hears of lease {message.lease} before the log")
        held = self.book.jobs[message.job].leases.get(message.lease)
        if held is not None and (held.node, held.span) != (node, message.span):
            raise Violation("D3", f"{node} hears of lease {message.lease} as {message.span}, the log has {held}")

    def sealed(self, world: World, command: SealCheckpoint, blocks: Blocks) -> None:
        account = self.book.jobs[command.job]
        moment = account.history.get(command.version)
        if command.generation == account.generation and moment is not None:
            used = _mark(account, command.committed)
            if not np.array_equal(used, moment.used):
                where = np.flatnonzero(used != moment.used)
                raise Violation("D2", f"the ledger of checkpoint {command.version} is wrong about {where}")

    def exported(self, world: World, job: JobId, version: Version, blocks: Blocks) -> None:
        account = self.book.jobs[job]
        if version not in account.history or account.state != "finishing":
            return  # nobody waits for it any more
        if version == account.version:
            compare(account, account.now.params, blocks, f"the export of {version}", "T1")


def finished(account: Account) -> None:
    """What must hold of a job that calls itself done."""
    unused = np.flatnonzero(~account.now.used)
    if len(unused):
        raise Violation("D1", f"{account.job} is done and positions {unused} were never used")
    train = account.spec.train
    assert account.plan is not None
    if train.deterministic:
        wanted = in_order(account.plan.samples, train.epochs, train.batch_samples, train.sync.slots)
        history = [account.history[v].spans for v in range(1, account.version + 1)]
        if history != wanted:
            at = next((i for i, pair in enumerate(zip(history, wanted, strict=False)) if pair[0] != pair[1]), -1)
            raise Violation("C4", f"a deterministic run depends on who was there: round {at + 1} is {history[at]}")


def _same_ledger(account: Account, ledger: LedgerState) -> None:
    committed = _mark(account, ledger.committed)
    if not np.array_equal(committed, account.now.used):
        where = np.flatnonzero(committed != account.now.used)
        raise Violation("D2", f"the ledger is wrong about what is in version {account.version}: {where}")
    if set(ledger.leases) != set(account.leases):
        raise Violation("J3", f"the ledger has leases {sorted(ledger.leases)}, the log {sorted(account.leases)}")
    opened = _mark(account, ledger.opened)
    wanted = ~account.taken
    wanted[ledger.cursor :] = False
    if not np.array_equal(opened, wanted):
        raise Violation("D1", f"open are {np.flatnonzero(opened)}, should be {np.flatnonzero(wanted)}")


def _mark(account: Account, spans: Iterable[Span]) -> Used:
    marked = np.zeros(len(account.taken), bool)
    for span in spans:
        where = account.positions(span)
        if marked[where].any():
            raise Violation("D1", f"{span} is counted twice")
        marked[where] = True
    return marked
