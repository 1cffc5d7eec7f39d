"""The ledger against a set: whatever is leased, returned, committed or rolled back, a position is in one place."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from medley.protocol.codec import parse, text
from medley.protocol.messages import Span
from medley.protocol.records import Aborted, Committed, Leased, MemberRecord, Returned
from medley.roles import ledger
from medley.roles.ledger import LedgerState

Position = tuple[int, int]  # epoch, place in its order


def positions(spans: list[Span]) -> list[Position]:
    return [(s.epoch, p) for s in spans for p in range(s.start, s.stop)]


class LedgerMachine(RuleBasedStateMachine):
    """`committed` and `saved` are the model: plain sets of positions."""

    def __init__(self) -> None:
        super().__init__()
        self.state = ledger.fresh(7, 2.5)
        self.everything = {divmod(i, 7) for i in range(self.state.total)}
        self.held: dict[int, list[Position]] = {}
        self.committed: set[Position] = set()
        self.saved: dict[int, set[Position]] = {0: set()}
        self.history: dict[int, set[Position]] = {0: set()}
        self.version = 0
        self.checkpoints = [0]

    @rule(size=st.integers(1, 5))
    def lease(self, size: int) -> None:
        span = ledger.next_span(self.state, size)
        free = self.everything - self.committed - {p for held in self.held.values() for p in held}
        if span is None:
            assert not free
            return
        number = self.state.next_lease
        taken = positions([span])
        assert 0 < len(taken) <= size
        assert min(free) == taken[0], "the lowest open positions come first"
        assert free.issuperset(taken)
        ledger.lease(self.state, Leased(number, "w", span, 1, 0))
        self.held[number] = taken

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def give_back(self, data: st.DataObject) -> None:
        gone = data.draw(st.lists(st.sampled_from(sorted(self.held)), unique=True, min_size=1))
        ledger.give_back(self.state, Returned((*gone, 999), "gone"))
        for number in gone:
            del self.held[number]

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def commit(self, data: st.DataObject) -> None:
        merged = data.draw(st.lists(st.sampled_from(sorted(self.held)), unique=True, min_size=1))
        self.version += 1
        members = tuple(MemberRecord(f"u{n}", "w", (n,), 1.0, 0) for n in merged)
        ledger.commit(self.state, Committed(self.version, members, 1.0, 0.0, 0, 0, 0))
        for number in merged:
            self.committed.update(self.held.pop(number))
        self.history[self.version] = set(self.committed)

    @precondition(lambda self: self.held)
    @rule(data=st.data(), carry=st.booleans())
    def abort(self, data: st.DataObject, carry: bool) -> None:
        number = data.draw(st.sampled_from(sorted(self.held)))
        ledger.abort(self.state, Aborted("u", "w", (number,), carry, "late"))
        if carry:
            assert self.state.leases[number].carried
        else:
            del self.held[number]

    @rule(data=st.data())
    def seal(self, data: st.DataObject) -> None:
        version = data.draw(st.integers(self.checkpoints[-1], self.version))
        if version == self.checkpoints[-1]:
            return
        self.checkpoints = [*self.checkpoints, version][-2:]
        ledger.seal(self.state, version, self.checkpoints)

    @rule(data=st.data())
    def roll_back(self, data: st.DataObject) -> None:
        version = data.draw(st.sampled_from(self.checkpoints))
        ledger.rollback(self.state, version)
        self.version = version
        self.checkpoints = [v for v in self.checkpoints if v <= version]
        self.committed = set(self.history[version])
        self.held.clear()

    @rule()
    def restart(self) -> None:
        self.state = parse(text(self.state), LedgerState)

    @invariant()
    def every_position_is_somewhere_once(self) -> None:
        assert ledger.missing(self.state) == 0
        assert self.state.doubled == 0
        assert set(positions(self.state.committed)) == self.committed
        assert ledger.committed_samples(self.state) == len(self.committed)
        assert {n: positions([h.span]) for n, h in self.state.leases.items()} == self.held
        seen = positions([*self.state.committed, *self.state.opened, *(h.span for h in self.state.leases.values())])
        assert len(seen) == len(set(seen))
        assert ledger.finished(self.state) == (self.committed == self.everything)


LedgerMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestLedger = LedgerMachine.TestCase


def test_a_double_commit_would_be_seen() -> None:
    state = ledger.fresh(4, 1.0)
    for number in (1, 2):
        state.leases[number] = ledger.HeldLease("w", Span(0, 0, 2), 1, 0)
        ledger.commit(state, Committed(number, (MemberRecord("u", "w", (number,), 1.0, 0),), 1.0, 0.0, 0, 0, 0))
    assert state.doubled == 2
