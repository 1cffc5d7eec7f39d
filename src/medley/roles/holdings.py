"""Which leases each machine holds and how many each round has: kept up with the log, not counted at each question.

With a hundred workers these questions come with every word that one of them says. What is here follows from the
ledger and is never durable; a record that changes more than one lease here and there lets all be counted anew.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from medley.protocol.ids import LeaseId, NodeId
from medley.protocol.records import CheckpointSealed, Committed, HeldoutMeasured, JobRecord, Leased
from medley.roles.ledger import HeldLease, LedgerState, committed_samples


@dataclass(slots=True)
class Holdings:
    """Of one run. `follow` hears of each record just before the ledger does."""

    of: dict[NodeId, set[LeaseId]] = field(default_factory=dict)
    rounds: dict[int, int] = field(default_factory=dict)  # leases of each round, without carried ones and second copies
    owing: dict[NodeId, int] = field(default_factory=dict)  # leases of each machine that has any, without carried ones
    current: bool = False
    committed: tuple[object, int] = (None, 0)  # samples in this list of spans

    def follow(self, ledger: LedgerState | None, record: JobRecord) -> None:
        if ledger is None or not self.current:
            return
        match record:
            case Leased():
                self._add(record.lease, HeldLease(record.node, record.span, record.steps, record.round))
            case Committed():
                for number in (n for member in record.members for n in member.leases):
                    self._remove(number, ledger.leases[number])
            case CheckpointSealed() | HeldoutMeasured():
                pass
            case _:
                self.current = False

    def look(self, ledger: LedgerState) -> Holdings:
        """The same, as the ledger has it now."""
        if not self.current:
            self.of, self.rounds, self.owing, self.current = {}, {}, {}, True
            for number, lease in ledger.leases.items():
                self._add(number, lease)
        return self

    def done(self, ledger: LedgerState) -> int:
        """Samples that are committed. The ledger makes another list of spans with each commit."""
        if self.committed[0] is not ledger.committed:
            self.committed = (ledger.committed, committed_samples(ledger))
        return self.committed[1]

    def _add(self, number: LeaseId, lease: HeldLease) -> None:
        self.of.setdefault(lease.node, set()).add(number)
        if not lease.carried:
            self.owing[lease.node] = self.owing.get(lease.node, 0) + 1
        if not lease.carried and not lease.backs:
            self.rounds[lease.round] = self.rounds.get(lease.round, 0) + 1

    def _remove(self, number: LeaseId, lease: HeldLease) -> None:
        self.of[lease.node].discard(number)
        if not lease.carried:
            self.owing[lease.node] -= 1
            if not self.owing[lease.node]:
                del self.owing[lease.node]
        if not lease.carried and not lease.backs:
            self.rounds[lease.round] -= 1
