"""Which samples are open, leased, or committed: each exactly once per epoch in the parameters that survive.

The ledger changes only by applying records, so it is the same after any crash. `rollback` returns to what a
checkpoint's parameters contain; everything later is open again. Positions, not samples, are counted: the seeded
order of an epoch maps one to the other on every machine alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from medley.protocol.ids import LeaseId, NodeId, Version
from medley.protocol.messages import Span
from medley.protocol.records import Aborted, Backed, Committed, Leased, Returned


@dataclass(slots=True)
class HeldLease:
    node: NodeId
    span: Span
    steps: int
    round: int
    carried: bool = False
    backs: LeaseId = 0  # the lease of the same samples that this one is a second copy of


@dataclass(slots=True)
class LedgerState:
    """Everything durable about the samples. `tail` is the spans of commits after the oldest base."""

    samples: int
    total: int  # positions in all epochs together
    cursor: int = 0  # next position never leased, counted over all epochs
    next_lease: LeaseId = 1
    opened: list[Span] = field(default_factory=list)  # given back, waiting to be leased again
    leases: dict[LeaseId, HeldLease] = field(default_factory=dict)
    committed: list[Span] = field(default_factory=list)
    bases: dict[Version, list[Span]] = field(default_factory=dict)  # committed at each kept checkpoint
    tail: list[tuple[Version, list[Span]]] = field(default_factory=list)
    doubled: int = 0


def fresh(samples: int, epochs: float) -> LedgerState:
    return LedgerState(samples=samples, total=max(1, round(samples * epochs)), bases={0: []})


def next_span(state: LedgerState, size: int) -> Span | None:
    """The lowest open positions, at most `size` of them, inside one epoch."""
    if state.opened:
        first = min(state.opened)
        return Span(first.epoch, first.start, min(first.stop, first.start + size))
    if state.cursor >= state.total:
        return None
    epoch, start = divmod(state.cursor, state.samples)
    last = min(state.samples, state.total - epoch * state.samples)
    return Span(epoch, start, min(start + size, last))


def lease(state: LedgerState, record: Leased) -> None:
    span = record.span
    if not _take_opened(state, span):
        state.cursor = span.epoch * state.samples + span.stop
    state.leases[record.lease] = HeldLease(record.node, span, record.steps, record.round)
    state.next_lease = max(state.next_lease, record.lease + 1)


def back(state: LedgerState, record: Backed) -> None:
    first = state.leases[record.backs]
    state.leases[record.lease] = HeldLease(record.node, first.span, first.steps, first.round, backs=record.backs)
    state.next_lease = max(state.next_lease, record.lease + 1)


def twin(state: LedgerState, number: LeaseId) -> LeaseId:
    """The other lease of the same samples; 0 if there is none."""
    held = state.leases[number]
    return held.backs or next((n for n, h in state.leases.items() if h.backs == number), 0)


def give_back(state: LedgerState, record: Returned) -> None:
    for number in record.leases:
        if number not in state.leases:
            continue
        other = twin(state, number)
        held = state.leases.pop(number)
        if other:
            state.leases[other].backs = 0  # it is the only one now
        else:
            state.opened = merge([*state.opened, held.span])


def commit(state: LedgerState, record: Committed) -> None:
    spans = [state.leases.pop(n).span for m in record.members for n in m.leases]
    state.doubled += overlap(state.committed, spans)
    state.committed = merge([*state.committed, *spans])
    state.tail.append((record.number, spans))


def abort(state: LedgerState, record: Aborted) -> None:
    if not record.carry:
        give_back(state, Returned(record.leases, record.reason))
        return
    for number in record.leases:
        if number in state.leases:
            state.leases[number].carried = True


def seal(state: LedgerState, version: Version, keep: Sequence[Version]) -> None:
    """Checkpoint `version` exists now; only the checkpoints in `keep` can still be returned to."""
    before = max((v for v in state.bases if v <= version), default=0)
    spans = [s for number, spans in state.tail if before < number <= version for s in spans]
    state.bases[version] = merge([*state.bases.get(before, []), *spans])
    state.bases = {v: b for v, b in state.bases.items() if v in keep}
    oldest = min(state.bases)
    state.tail = [(n, s) for n, s in state.tail if n > oldest]


def rollback(state: LedgerState, version: Version) -> None:
    """The parameters are those of checkpoint `version` again: whatever came later is open."""
    state.committed = list(state.bases[version])
    state.bases = {v: b for v, b in state.bases.items() if v <= version}
    state.tail = [(n, s) for n, s in state.tail if n <= version]
    state.leases.clear()
    state.opened = gaps(state.committed, state.samples, state.cursor)


def committed_samples(state: LedgerState) -> int:
    return count(state.committed)


def finished(state: LedgerState) -> bool:
    return committed_samples(state) >= state.total


def exhausted(state: LedgerState) -> bool:
    """Nothing is left to lease (what is leased may still come back)."""
    return not state.opened and state.cursor >= state.total


def missing(state: LedgerState) -> int:
    """Positions below the cursor that are neither committed, leased nor open: always 0."""
    held = count(h.span for h in state.leases.values() if not h.backs) + count(state.opened)
    return state.cursor - committed_samples(state) - held


def count(spans: Iterable[Span]) -> int:
    return sum(s.stop - s.start for s in spans)


def merge(spans: Iterable[Span]) -> list[Span]:
    """Sorted, joined where they touch."""
    merged: list[Span] = []
    for span in sorted(spans):
        last = merged[-1] if merged else None
        if last is not None and last.epoch == span.epoch and span.start <= last.stop:
            merged[-1] = Span(last.epoch, last.start, max(last.stop, span.stop))
        else:
            merged.append(span)
    return merged


def overlap(old: Sequence[Span], new: Sequence[Span]) -> int:
    """How many positions of `new` are in `old` already, or twice in `new`."""
    return count(old) + count(new) - count(merge([*old, *new]))


def gaps(committed: Sequence[Span], samples: int, cursor: int) -> list[Span]:
    """Positions below the cursor that are not committed, as spans inside epochs."""
    result: list[Span] = []
    for epoch in range((cursor + samples - 1) // samples):
        position, end = 0, min(samples, cursor - epoch * samples)
        for span in (s for s in committed if s.epoch == epoch):
            if span.start > position:
                result.append(Span(epoch, position, span.start))
            position = max(position, span.stop)
        if position < end:
            result.append(Span(epoch, position, end))
    return result


def _take_opened(state: LedgerState, span: Span) -> bool:
    """Remove `span` from the open ones; False if it is not there."""
    for index, candidate in enumerate(state.opened):
        if candidate.epoch == span.epoch and candidate.start <= span.start and span.stop <= candidate.stop:
            rest = [
                Span(span.epoch, candidate.start, span.start),
                Span(span.epoch, span.stop, candidate.stop),
            ]
            state.opened[index : index + 1] = [s for s in rest if s.start < s.stop]
            return True
    return False
