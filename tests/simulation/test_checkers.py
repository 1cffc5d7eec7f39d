"""The checkers notice what they are for: each record that contradicts the ones before it names its invariant."""

from __future__ import annotations

import pytest

from medley.protocol.codec import text
from medley.protocol.layout import TensorSpec
from medley.protocol.messages import Span
from medley.protocol.plan import Plan
from medley.protocol.records import (
    Aborted,
    Backed,
    CheckpointSealed,
    Committed,
    Leased,
    MemberRecord,
    Placed,
    Prepared,
    Record,
    Returned,
    ShardPlace,
    StateChanged,
    Submitted,
)
from medley.protocol.spec import JobSpec, Optimizer, Train
from medley.runtimes.simulated.checkers import INVARIANTS, Book, Violation
from medley.runtimes.simulated.checkers.book import START, in_order

SPEC = JobSpec(
    name="j",
    train=Train(
        batch_samples=2, aggregation="sum", optimizer=Optimizer(kind="sgd", lr=1.0, schedule="constant", clip_norm=0.0)
    ),
)
PLACES = (ShardPlace(0, "n0", "", (0,)),)


def placed(generation: int, version: int) -> Placed:
    return Placed(generation, version, PLACES, "")


def committed(number: int, update: str, lease: int, node: str = "n1") -> Committed:
    return Committed(number, (MemberRecord(update, node, (lease,), 1.0, 0),), 1.0, 0.0, 0, 2, 0)


def book(*records: Record) -> Book:
    plan = Plan(SPEC, 8, 0, (TensorSpec("t", (8,), ""),), ())
    kept = Book()
    begin: tuple[Record, ...] = (
        Submitted("j", text(SPEC), 0),
        StateChanged("j", "preparing", "", 0),
        Prepared("j", text(plan)),
        StateChanged("j", "running", "", 0),
        placed(1, 0),
        Leased(1, "n1", Span(0, 0, 2), 1, 0),
    )
    for record in (*begin, *records):
        kept.follow("job/j", record)
    return kept


WRONG: dict[str, tuple[str, tuple[Record, ...]]] = {
    "a job twice": ("J2", (Submitted("j", text(SPEC), 0),)),
    "done without finishing": ("J1", (StateChanged("j", "done", "", 0),)),
    "a lease's number twice": ("J3", (Leased(1, "n2", Span(0, 2, 4), 1, 0),)),
    "samples leased twice": ("D3", (Leased(2, "n2", Span(0, 1, 3), 1, 0),)),
    "samples used twice": ("D3", (committed(1, "a", 1), Leased(2, "n2", Span(0, 0, 2), 1, 0))),
    "a backup of one's own lease": ("D3", (Backed(2, "n1", 1),)),
    "a third copy of a lease": ("D3", (Backed(2, "n2", 1), Backed(3, "n3", 1))),
    "a backup of nobody's lease": ("D3", (Backed(2, "n2", 9),)),
    "one of two copies merged": ("D1", (Backed(2, "n2", 1), committed(1, "a", 1))),
    "samples of a backup leased again": (
        "D3",
        (Backed(2, "n2", 1), Returned((1,), ""), Leased(3, "n3", Span(0, 0, 2), 1, 0)),
    ),
    "a lease given back twice": ("J3", (Returned((1,), ""), Returned((1,), ""))),
    "a version left out": ("T5", (committed(2, "a", 1),)),
    "a generation left out": ("T5", (placed(3, 0),)),
    "somebody else's lease": ("S2", (committed(1, "a", 1, node="n2"),)),
    "a lease that nobody holds": ("J3", (committed(1, "a", 7),)),
    "an update merged twice": (
        "J4",
        (Leased(2, "n1", Span(0, 2, 4), 1, 0), committed(1, "a", 1), committed(2, "a", 2)),
    ),
    "an update refused, then merged": ("T2", (Aborted("a", "n1", (1,), True, ""), committed(1, "a", 1))),
    "a carry beside a carry": (
        "T2",
        (
            Leased(2, "n1", Span(0, 2, 4), 1, 0),
            Aborted("a", "n1", (1,), True, ""),
            Aborted("b", "n1", (2,), True, ""),
        ),
    ),
    "back to what was never saved": ("C1", (committed(1, "a", 1), placed(2, 1))),
    "a shard too few": ("J6", (Placed(2, 0, (), ""),)),
}


def test_a_backup_may_be_merged_once_the_first_lease_is_given_back() -> None:
    kept = book(Backed(2, "n2", 1), Returned((1,), ""), committed(1, "a", 2, node="n2"))
    assert kept.jobs["j"].version == 1 and not kept.jobs["j"].leases


@pytest.mark.parametrize("name", WRONG)
def test_a_contradiction_names_its_invariant(name: str) -> None:
    code, records = WRONG[name]
    book(*records[:-1])
    with pytest.raises(Violation) as broken:
        book(*records)
    assert broken.value.invariant == code
    assert code in INVARIANTS


def test_the_book_knows_parameters_and_samples() -> None:
    kept = book(committed(1, "a", 1), CheckpointSealed(1, 1, "d", 0), Leased(2, "n1", Span(0, 2, 4), 1, 0))
    account = kept.jobs["j"]
    assert account.now.params.tolist() == [START - 1] * 2 + [START] * 6
    kept.follow("job/j", committed(2, "b", 2))
    assert account.now.used.tolist() == [True] * 4 + [False] * 4
    kept.follow("job/j", placed(2, 1))
    assert account.now.used.tolist() == [True] * 2 + [False] * 6
    assert account.taken.tolist() == account.now.used.tolist()


def test_the_order_of_a_deterministic_run() -> None:
    assert in_order(5, 1.0, 2, 2) == [(Span(0, 0, 2), Span(0, 2, 4)), (Span(0, 4, 5),)]
