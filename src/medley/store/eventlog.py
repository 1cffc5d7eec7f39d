"""The durable event log: the fold of it is the state of the coordinator.

Promises: an append is one transaction and is on disk when it returns (group commit: many entries, one fsync);
sequence numbers have no gaps and their order is the order of commits; one term may write, checked inside
every transaction, so a coordinator that was replaced can never add a word. SQLite by default, PostgreSQL by
URL, with the same code. Leaves to others: what the bodies mean, and when to compact. After `Unavailable` it
is unknown whether the transaction happened: a coordinator stops and folds the log again, it does not guess.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import sqlalchemy as sa

from medley.observe import failpoints
from medley.protocol.errors import UserError
from medley.store.database import READING, connect, translated
from medley.store.errors import Fenced

MAX_BODY_NBYTES: Final = 16 << 20
MAX_BATCH_NBYTES: Final = 64 << 20
MAX_BATCH_ENTRIES: Final = 16_384
MAX_NAME_CHARACTERS: Final = 200
_READ_ROWS: Final = 64
_SCHEMA: Final = 1

_tables = sa.MetaData()
_head = sa.Table(
    "medley_head",
    _tables,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("schema_version", sa.Integer, nullable=False),
    sa.Column("term", sa.BigInteger, nullable=False),
    sa.Column("owner", sa.String(MAX_NAME_CHARACTERS), nullable=False),
    sa.Column("last_seq", sa.BigInteger, nullable=False),
)
_events = sa.Table(
    "medley_events",
    _tables,
    sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("term", sa.BigInteger, nullable=False),
    sa.Column("stream", sa.String(MAX_NAME_CHARACTERS), nullable=False),
    sa.Column("kind", sa.String(MAX_NAME_CHARACTERS), nullable=False),
    sa.Column("body", sa.LargeBinary, nullable=False),
    sa.Index("medley_events_by_stream", "stream", "seq"),
)


@dataclass(frozen=True, slots=True)
class Entry:
    """One event to write: `stream` is "pool" or "job/<id>", `body` is JSON of at most MAX_BODY_NBYTES."""

    stream: str
    kind: str
    body: bytes


@dataclass(frozen=True, slots=True)
class Stored:
    """One event as it stands in the log."""

    seq: int
    term: int
    stream: str
    kind: str
    body: bytes


class EventLog:
    """One process's handle on the log; safe to share between threads."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._term = 0

    @classmethod
    def open(cls, url: str) -> EventLog:
        """Open or create the log at an SQLAlchemy URL (`sqlite:///medley.db`,
        `postgresql+psycopg://host/name`).

        Raises UserError, one sentence, for a place that cannot be used; StoreFull for a full disk;
        Unavailable for a server that does not answer.
        """
        engine = connect(url)
        log = cls(engine)
        try:
            with translated(engine, opening=True), engine.begin() as connection:
                _create(connection)
        except BaseException:
            engine.dispose()
            raise
        return log

    @property
    def term(self) -> int:
        """The term this handle writes under; 0 before `acquire_term`."""
        return self._term

    def acquire_term(self, owner: str) -> int:
        """Become the writer: a new term is persisted, and handles with older terms are Fenced from now on."""
        _check_name("owner", owner)
        with translated(self._engine), self._engine.begin() as connection:
            connection.execute(sa.update(_head).values(term=_head.c.term + 1, owner=owner))
            term = connection.execute(sa.select(_head.c.term)).scalar_one()
        self._term = int(term)
        return self._term

    def append(self, entries: Sequence[Entry]) -> int:
        """Write all entries in one transaction, or none; returns the sequence number of the last one.

        Raises Fenced when a newer term was acquired, StoreFull when there is no room, Unavailable when the
        outcome is unknown, ValueError for an empty batch or one over the limits.
        """
        _check_batch(entries)
        with translated(self._engine), self._engine.begin() as connection:
            last = self._advance(connection, len(entries))
            first = last - len(entries) + 1
            rows = [self._row(first + place, entry) for place, entry in enumerate(entries)]
            connection.execute(sa.insert(_events), rows)
            failpoints.hit("eventlog.commit.before")
        failpoints.hit("eventlog.commit.after")
        return last

    def read(self, stream: str | None = None, after: int = 0) -> Iterator[Stored]:
        """Entries with seq > `after`, in order, of one stream or of all; one consistent snapshot, never all
        in memory."""
        query = sa.select(_events).where(_events.c.seq > after).order_by(_events.c.seq)
        if stream is not None:
            query = query.where(_events.c.stream == stream)
        with translated(self._engine), self._engine.connect() as connection:
            reading = connection.execution_options(yield_per=_READ_ROWS, **READING)
            for row in reading.execute(query):
                yield Stored(row.seq, row.term, row.stream, row.kind, bytes(row.body))

    def compact(self, stream: str, upto_seq: int, snapshot: Entry) -> None:
        """Replace the entries of `stream` with seq <= `upto_seq` by `snapshot`, atomically.

        The snapshot takes the sequence number of the newest entry it replaces, so later entries keep theirs
        and a reader that has folded past it is not disturbed. Raises as `append`, and ValueError when there
        is nothing to replace.
        """
        _check_batch([snapshot])
        if snapshot.stream != stream:
            raise ValueError(f"a snapshot of '{snapshot.stream}' cannot stand for the stream '{stream}'")
        old = (_events.c.stream == stream) & (_events.c.seq <= upto_seq)
        with translated(self._engine), self._engine.begin() as connection:
            self._advance(connection, 0)
            newest = connection.execute(sa.select(sa.func.max(_events.c.seq)).where(old)).scalar_one()
            if newest is None:
                raise ValueError(f"stream '{stream}' has no entry up to {upto_seq} that a snapshot could replace")
            connection.execute(sa.delete(_events).where(old))
            connection.execute(sa.insert(_events), [self._row(newest, snapshot)])
            failpoints.hit("eventlog.compact.before")
        failpoints.hit("eventlog.compact.after")

    def last_seq(self) -> int:
        """The newest sequence number given out; 0 for a new log."""
        with translated(self._engine), self._engine.connect() as connection:
            reading = connection.execution_options(**READING)
            return int(reading.execute(sa.select(_head.c.last_seq)).scalar_one())

    def close(self) -> None:
        """Release the connections; what was appended is already durable."""
        self._engine.dispose()

    def _advance(self, connection: sa.Connection, count: int) -> int:
        # This update is the transaction's first statement: it takes the writer's lock (SQLite: the file's,
        # PostgreSQL: the row's), so the term cannot change until we commit and numbers are given out in the
        # order of commits.
        mine = sa.update(_head).where(_head.c.term == self._term, _head.c.term > 0)
        updated = connection.execute(mine.values(last_seq=_head.c.last_seq + count)).rowcount
        term, owner, last = connection.execute(sa.select(_head.c.term, _head.c.owner, _head.c.last_seq)).one()
        if updated != 1:
            raise Fenced(f"term {self._term} may not write: '{owner}' holds term {term} of this event log")
        return int(last)

    def _row(self, seq: int, entry: Entry) -> dict[str, object]:
        return {
            "seq": seq,
            "term": self._term,
            "stream": entry.stream,
            "kind": entry.kind,
            "body": entry.body,
        }


def _create(connection: sa.Connection) -> None:
    if connection.dialect.name == "postgresql":
        # Two processes that create the same tables at once would both fail; the lock makes one of them
        # second.
        connection.execute(sa.text("SELECT pg_advisory_xact_lock(7238246)"))
    _tables.create_all(connection)
    version = connection.execute(sa.select(_head.c.schema_version)).scalar_one_or_none()
    if version is None:
        row = {"id": 1, "schema_version": _SCHEMA, "term": 0, "owner": "", "last_seq": 0}
        connection.execute(sa.insert(_head), [row])
    elif version != _SCHEMA:
        raise UserError(
            f"the event log at {connection.engine.url.render_as_string()} has format {version}, "
            f"this Medley reads format {_SCHEMA}: use the version of Medley that wrote it, or another place"
        )


def _check_batch(entries: Sequence[Entry]) -> None:
    if not 0 < len(entries) <= MAX_BATCH_ENTRIES:
        raise ValueError(f"a batch holds 1 to {MAX_BATCH_ENTRIES} entries, not {len(entries)}")
    total_nbytes = 0
    for entry in entries:
        _check_name("stream", entry.stream)
        _check_name("kind", entry.kind)
        if len(entry.body) > MAX_BODY_NBYTES:
            raise ValueError(f"a body of {len(entry.body)} bytes is over the limit of {MAX_BODY_NBYTES}")
        total_nbytes += len(entry.body)
    if total_nbytes > MAX_BATCH_NBYTES:
        raise ValueError(f"a batch of {total_nbytes} bytes is over the limit of {MAX_BATCH_NBYTES}")


def _check_name(what: str, name: str) -> None:
    if not 0 < len(name) <= MAX_NAME_CHARACTERS or "\0" in name:
        raise ValueError(f"the {what} must have 1 to {MAX_NAME_CHARACTERS} characters and no NUL")
