"""The coordinator's log with the promises of `store.eventlog`, and the ways in which a disk breaks its own.

An append is one transaction, durable when it returns, under the newest term only. What may happen instead is set
from outside: no room (nothing is written, and the writer hears it), a write that the power interrupted (the
transaction is gone as a whole: SQLite's write-ahead log checks its frames), a word in storage that changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from medley.protocol.codec import Codec
from medley.protocol.effects import Compact, Persist
from medley.protocol.records import Record

LOG = Codec(Record)


class Fenced(Exception):
    """A newer coordinator holds the log."""


class Full(Exception):
    """There was no room; nothing was written."""


@dataclass(frozen=True, slots=True)
class Entry:
    seq: int
    term: int
    stream: str
    kind: str
    body: bytes


@dataclass(slots=True)
class Disk:
    """Survives every process. `full` refuses appends."""

    term: int = 0
    last_seq: int = 0
    streams: dict[str, list[Entry]] = field(default_factory=dict)
    full: bool = False
    writes: int = 0

    def acquire_term(self) -> int:
        self.term += 1
        return self.term

    def append(self, term: int, records: Sequence[Persist]) -> list[bytes]:
        """All of them in one transaction, or none; returns the bodies. Raises Fenced, Full."""
        self._may_write(term)
        bodies = []
        for record in records:
            kind, body = LOG.to_json(record.record)
            self.last_seq += 1
            entry = Entry(self.last_seq, term, record.stream, kind, body)
            self.streams.setdefault(record.stream, []).append(entry)
            bodies.append(body)
        return bodies

    def compact(self, term: int, record: Compact) -> bytes:
        """The stream so far is replaced by this one record, which takes the place of its newest entry."""
        self._may_write(term)
        kind, body = LOG.to_json(record.record)
        old = self.streams[record.stream]
        self.streams[record.stream] = [Entry(old[-1].seq, term, record.stream, kind, body)]
        return body

    def read(self) -> list[tuple[str, Any]]:
        """(stream, record) of everything, in the order of the log. Raises FrameError for a body that is no record."""
        entries = sorted((e for stream in self.streams.values() for e in stream), key=lambda e: e.seq)
        return [(e.stream, LOG.from_json(e.kind, e.body)) for e in entries]

    def _may_write(self, term: int) -> None:
        if term != self.term:
            raise Fenced(f"term {term} may not write: term {self.term} holds the log")
        if self.full:
            raise Full("the disk is full")
        self.writes += 1
