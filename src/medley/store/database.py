"""Connections to SQLite and PostgreSQL that are durable on commit, and their errors as sentences.

SQLite runs in WAL mode with synchronous=FULL and waits for a lock; PostgreSQL through psycopg 3 (extra
`postgres`), with asynchronous commit switched back on if the server's default turned it off.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from medley.protocol.errors import Damaged, MedleyError, Unavailable, UserError
from medley.store.errors import StoreFull, is_full

LOCK_TIMEOUT_S: Final = 10
CONNECT_TIMEOUT_S: Final = 10
# Execution options of a connection that only reads, so that it never waits for the writer of an SQLite file.
READING: Final = {"medley_reading": True}

_SQLITE_FULL = 13
_SQLITE_CORRUPT = 11
_SQLITE_NOTADB = 26
_SQLITE_READONLY = 8
_SQLITE_CANTOPEN = 14
_POSTGRES_FULL = "53100"


def connect(url: str) -> sa.Engine:
    """An engine for a SQLAlchemy URL; UserError when the URL names nothing Medley can use. Nothing is opened
    yet, except that a new SQLite file is created, readable by its owner only."""
    parsed = _parse(url)
    match parsed.get_backend_name():
        case "sqlite":
            return _connect_sqlite(parsed)
        case "postgresql":
            return _connect_postgres(parsed)
        case other:
            raise UserError(f"'{other}' is no database for Medley: use sqlite:///PATH or postgresql://HOST/NAME")


@contextmanager
def translated(engine: sa.Engine, opening: bool = False) -> Iterator[None]:
    """Turn database errors into Medley's: UserError (only when opening), StoreFull, Damaged or
    Unavailable."""
    try:
        yield
    except PoolTimeout as error:
        raise Unavailable(f"no connection to {_shown(engine.url)} became free in time") from error
    except DBAPIError as error:
        raise _translate(error, _shown(engine.url), opening) from error


def _parse(url: str) -> sa.URL:
    try:
        return sa.make_url(url)
    except ArgumentError as error:
        raise UserError(
            "the event log's URL cannot be read: use sqlite:///PATH or postgresql://USER@HOST/NAME"
        ) from error


def _connect_sqlite(url: sa.URL) -> sa.Engine:
    if not url.database or url.database == ":memory:" or url.database.startswith("file:"):
        raise UserError("an event log must survive the process: give a path, as in sqlite:////srv/medley/medley.db")
    _prepare_file(Path(url.database))
    engine = sa.create_engine(url.set(drivername="sqlite"), connect_args={"timeout": LOCK_TIMEOUT_S})
    sa.event.listen(engine, "connect", _configure_sqlite)
    sa.event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_file(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
    except OSError as error:
        if is_full(error):
            raise StoreFull(f"the disk that should hold {path} is full: free some space and start again") from error
        raise UserError(
            f"the event log {path} cannot be written ({error.strerror}): give a path in a directory you may write to"
        ) from error


def _configure_sqlite(connection: Any, _record: object) -> None:
    # The driver's own transaction control begins late and differs between Python versions: we say BEGIN
    # ourselves.
    connection.isolation_level = None
    cursor = connection.cursor()
    try:
        cursor.execute(f"PRAGMA busy_timeout={LOCK_TIMEOUT_S * 1000}")
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA synchronous=FULL")
    finally:
        cursor.close()


def _begin_sqlite(connection: sa.Connection) -> None:
    # A writer takes its lock at once: a transaction that read first could find its snapshot outdated and
    # fail.
    reading = connection.get_execution_options().get("medley_reading", False)
    connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")


def _connect_postgres(url: sa.URL) -> sa.Engine:
    try:
        engine = sa.create_engine(
            url.set(drivername="postgresql+psycopg"),
            connect_args={"connect_timeout": CONNECT_TIMEOUT_S},
            pool_pre_ping=True,
            pool_timeout=CONNECT_TIMEOUT_S,
        )
    except (ModuleNotFoundError, NoSuchModuleError) as error:
        raise UserError("PostgreSQL needs the psycopg driver: pip install 'medley-lm[postgres]'") from error
    sa.event.listen(engine, "connect", _configure_postgres)
    return engine


def _configure_postgres(connection: Any, _record: object) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SHOW synchronous_commit")
        # Only "off" breaks the promise that what was appended survives; stronger settings are the server's
        # choice.
        if cursor.fetchone()[0] == "off":
            cursor.execute("SET synchronous_commit TO on")
        cursor.execute(f"SET lock_timeout TO {LOCK_TIMEOUT_S * 1000}")
    connection.commit()


def _translate(error: DBAPIError, where: str, opening: bool) -> MedleyError:
    cause = error.orig
    text = " ".join(str(cause).split())
    code = _sqlite_code(cause)
    if code == _SQLITE_FULL or getattr(cause, "sqlstate", None) == _POSTGRES_FULL:
        return StoreFull(f"no room left for {where}: free some space and start again; what was written before is safe")
    if opening and code == _SQLITE_NOTADB:
        return UserError(f"{where} exists and is not an event log of Medley ({text}): give another path")
    if code in (_SQLITE_NOTADB, _SQLITE_CORRUPT):
        return Damaged(f"the event log {where} is damaged ({text})")
    if opening and code in (_SQLITE_READONLY, _SQLITE_CANTOPEN):
        return UserError(f"the event log {where} cannot be written ({text}): check who owns it and its directory")
    if opening and _is_refusal(text):
        return UserError(f"the database {where} cannot be used: {text}")
    return Unavailable(f"{where} does not answer as it should: {text}")


def _sqlite_code(cause: BaseException | None) -> int | None:
    """SQLite's primary result code, without the extension that says which operation met it."""
    code = getattr(cause, "sqlite_errorcode", None)
    return None if code is None else int(code) & 0xFF


def _is_refusal(text: str) -> bool:
    """Whether a PostgreSQL server answered and said no: a wrong name or password, not a restart to wait
    for."""
    passing = ("starting up", "shutting down", "too many", "remaining connection slots")
    return "FATAL" in text and not any(words in text for words in passing)


def _shown(url: sa.URL) -> str:
    if url.get_backend_name() == "sqlite":
        return str(url.database)
    return url.render_as_string(hide_password=True)
