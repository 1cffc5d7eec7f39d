"""The event log keeps what it acknowledged, in order, from one writer; on SQLite and on PostgreSQL."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
from tests.processes import running

from medley.protocol.errors import Damaged, Unavailable, UserError
from medley.store.errors import Fenced, StoreFull
from medley.store.eventlog import MAX_BODY_NBYTES, Entry, EventLog

Opener = Callable[[], EventLog]


def entry(text: str, stream: str = "job/a") -> Entry:
    return Entry(stream, "Committed", f'"{text}"'.encode())


def bodies(log: EventLog, stream: str | None = None, after: int = 0) -> list[str]:
    return [stored.body.decode().strip('"') for stored in log.read(stream, after)]


def test_appends_are_read_back_in_order_with_numbers_without_gaps(open_log: Opener) -> None:
    log = open_log()
    assert log.acquire_term("first") == 1
    assert log.append([entry("a"), entry("b", "pool")]) == 2
    assert log.append([entry("c")]) == 3
    assert [(s.seq, s.term, s.stream, s.kind, s.body) for s in log.read()] == [
        (1, 1, "job/a", "Committed", b'"a"'),
        (2, 1, "pool", "Committed", b'"b"'),
        (3, 1, "job/a", "Committed", b'"c"'),
    ]
    assert bodies(log, "job/a") == ["a", "c"]
    assert bodies(log, after=1) == ["b", "c"]


def test_a_new_handle_reads_everything_and_continues_the_numbers(open_log: Opener) -> None:
    log = open_log()
    log.acquire_term("first")
    log.append([entry(str(n)) for n in range(200)])
    log.close()
    again = open_log()
    assert again.acquire_term("second") == 2
    assert bodies(again) == [str(n) for n in range(200)]
    assert again.append([entry("next")]) == 201 == again.last_seq()


def test_the_older_term_is_fenced_and_leaves_nothing(open_log: Opener) -> None:
    old, new = open_log(), open_log()
    old.acquire_term("old")
    old.append([entry("kept")])
    new.acquire_term("new")
    for write in (
        lambda: old.append([entry("lost")]),
        lambda: old.compact("job/a", 1, entry("lost")),
    ):
        with pytest.raises(Fenced, match="term 1 may not write: 'new' holds term 2"):
            write()
    assert bodies(new) == ["kept"]
    assert new.append([entry("mine")]) == 2


def test_a_handle_without_a_term_may_not_write(open_log: Opener) -> None:
    log = open_log()
    with pytest.raises(Fenced):
        log.append([entry("nobody writes before the first term")])
    log.acquire_term("writer")
    with pytest.raises(Fenced):
        open_log().append([entry("a")])


def test_compaction_replaces_a_prefix_of_one_stream(open_log: Opener) -> None:
    log = open_log()
    log.acquire_term("me")
    log.append([entry("a"), entry("pool", "pool"), entry("b"), entry("c")])
    log.compact("job/a", 3, Entry("job/a", "Snapshot", b'"a+b"'))
    assert [(s.seq, s.kind) for s in log.read("job/a")] == [(3, "Snapshot"), (4, "Committed")]
    assert bodies(log) == ["pool", "a+b", "c"]
    log.compact("job/a", 4, Entry("job/a", "Snapshot", b'"all"'))
    assert bodies(log) == ["pool", "all"]
    assert log.append([entry("d")]) == 5
    with pytest.raises(ValueError, match="no entry"):
        log.compact("job/b", 5, entry("x", "job/b"))


def test_reading_while_appending_is_a_consistent_snapshot(open_log: Opener) -> None:
    log = open_log()
    log.acquire_term("me")
    log.append([entry(str(n)) for n in range(150)])
    reader = log.read()
    first = next(reader)
    log.append([entry("later")])
    log.compact("job/a", 100, entry("snapshot"))
    assert [first.seq, *(stored.seq for stored in reader)] == list(range(1, 151))


@pytest.mark.parametrize(
    ("entries", "sentence"),
    [
        ([], "1 to"),
        ([Entry("", "k", b"{}")], "stream"),
        ([Entry("s", "k" * 500, b"{}")], "kind"),
        ([Entry("s", "k", bytes(MAX_BODY_NBYTES + 1))], "over the limit"),
        ([Entry("s", "k", bytes(MAX_BODY_NBYTES))] * 5, "over the limit"),
    ],
)
def test_batches_over_the_limits_are_refused(entries: list[Entry], sentence: str, tmp_path: Path) -> None:
    log = EventLog.open(f"sqlite:///{tmp_path / 'a.db'}")
    log.acquire_term("me")
    with pytest.raises(ValueError, match=sentence):
        log.append(entries)
    assert log.last_seq() == 0
    log.close()


WRITE = """
from medley.store.eventlog import Entry, EventLog
log = EventLog.open({url!r})
log.acquire_term("doomed")
log.append([Entry("job/a", "k", b'"new"')] * 3)
"""
COMPACT = """
from medley.store.eventlog import Entry, EventLog
log = EventLog.open({url!r})
log.acquire_term("doomed")
log.compact("job/a", 2, Entry("job/a", "k", b'"snapshot"'))
"""


@pytest.mark.parametrize(
    ("failpoint", "script", "expected"),
    [
        ("eventlog.commit.before", WRITE, ["old", "old"]),
        ("eventlog.commit.after", WRITE, ["old", "old", "new", "new", "new"]),
        ("eventlog.compact.before", COMPACT, ["old", "old"]),
        ("eventlog.compact.after", COMPACT, ["snapshot"]),
    ],
)
def test_a_kill_around_a_commit_leaves_all_or_nothing(
    failpoint: str,
    script: str,
    expected: list[str],
    log_url: str,
    open_log: Opener,
    die_at: Callable[[str, str], None],
) -> None:
    log = open_log()
    log.acquire_term("first")
    log.append([entry("old")] * 2)
    log.close()
    die_at(failpoint, script.format(url=log_url))
    again = open_log()
    assert bodies(again) == expected
    assert again.acquire_term("second") == 3
    log_end = again.append([entry("next")])
    assert [s.seq for s in again.read()][-1] == log_end


RACE = """
import sys
from medley.store.errors import Fenced
from medley.store.eventlog import Entry, EventLog
log = EventLog.open({url!r})
term = log.acquire_term("racer")
print(term, flush=True)
sys.stdin.readline()
try:
    while True:
        print(log.append([Entry("job/a", "k", b"{{}}")] * 2), flush=True)
except Fenced:
    print("fenced", flush=True)
"""


def test_a_writer_that_is_replaced_while_it_writes_stops_and_every_acknowledged_entry_stays(
    log_url: str, open_log: Opener
) -> None:
    log = open_log()
    command = [sys.executable, "-c", RACE.format(url=log_url)]
    with running(command) as racer:
        assert racer.stdin is not None and racer.stdout is not None
        assert racer.stdout.readline() == "1\n"
        racer.stdin.write("go\n")
        racer.stdin.flush()
        acknowledged = [int(racer.stdout.readline()) for _ in range(20)]
        assert log.acquire_term("replacement") == 2
        own = log.append([entry("mine")])
        lines = racer.stdout.read().split()
    assert lines[-1] == "fenced"
    acknowledged += [int(line) for line in lines[:-1]]
    stored = list(log.read())
    assert [s.seq for s in stored] == list(range(1, own + 1))
    assert acknowledged[-1] == own - 1
    assert [s.term for s in stored] == [1] * (own - 1) + [2]


def test_concurrent_first_opens_agree(log_url: str) -> None:
    script = f"from medley.store.eventlog import EventLog\nprint(EventLog.open({log_url!r}).acquire_term('x'))"
    command = [sys.executable, "-c", script]
    with ExitStack() as stack:
        racers = [stack.enter_context(running(command)) for _ in range(3)]
        terms = sorted(int(racer.communicate(timeout=60)[0]) for racer in racers)
    assert terms == [1, 2, 3]


def test_a_full_disk_is_said_and_nothing_acknowledged_is_lost(tiny_disk: Path) -> None:
    url = f"sqlite:///{tiny_disk / 'a.db'}"
    log = EventLog.open(url)
    log.acquire_term("me")
    written = 0
    with pytest.raises(StoreFull, match="free some space"):
        for _ in range(100):
            log.append([Entry("job/a", "k", bytes(50_000))])
            written += 1
    log.close()
    assert written > 1
    again = EventLog.open(url)
    assert len(list(again.read())) == written
    again.close()


def test_a_damaged_file_is_said(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    log = EventLog.open(f"sqlite:///{path}")
    log.acquire_term("me")
    for _ in range(200):
        log.append([Entry("job/a", "k", bytes(4000))])
    log.close()
    content = bytearray(path.read_bytes())
    content[8192:] = b"\xff" * (len(content) - 8192)
    path.write_bytes(content)
    with pytest.raises(Damaged, match="damaged"):
        list(EventLog.open(f"sqlite:///{path}").read())


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("nonsense", "cannot be read"),
        ("mysql://host/name", "no database for Medley"),
        ("sqlite://", "must survive"),
        ("sqlite:///{tmp}", "cannot be written"),
        ("sqlite:///{tmp}/text.db", "is not an event log"),
    ],
)
def test_a_place_that_cannot_be_used_is_one_sentence(url: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("not a database, " * 100)
    with pytest.raises(UserError, match=sentence):
        EventLog.open(url.format(tmp=tmp_path))


def test_a_log_of_another_format_is_refused(tmp_path: Path) -> None:
    import sqlite3

    path = tmp_path / "a.db"
    EventLog.open(f"sqlite:///{path}").close()
    connection = sqlite3.connect(path)
    connection.execute("UPDATE medley_head SET schema_version = 99")
    connection.commit()
    connection.close()
    with pytest.raises(UserError, match="format 99"):
        EventLog.open(f"sqlite:///{path}")


def test_a_server_that_is_away_is_unavailable_and_a_wrong_name_is_a_persons_mistake(
    postgres_url: str,
) -> None:
    with pytest.raises(Unavailable, match="refused"):
        EventLog.open("postgresql://medley@127.0.0.1:1/medley")
    with pytest.raises(UserError, match="does not exist"):
        EventLog.open(f"{postgres_url}/nowhere")


@pytest.mark.parametrize("log_url", ["postgres"], indirect=True)
def test_a_connection_that_the_server_dropped_is_made_anew(postgres_url: str, open_log: Opener, log_url: str) -> None:
    import psycopg

    log = open_log()
    log.acquire_term("me")
    log.append([entry("before")])
    with psycopg.connect(f"{postgres_url}/postgres", autocommit=True) as connection:
        others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s"
        connection.execute(others, [log_url.rpartition("/")[2]])
    log.append([entry("after")])
    assert bodies(log) == ["before", "after"]


@pytest.mark.skipif(os.name != "posix", reason="file modes are POSIX")
def test_a_new_log_is_readable_by_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    log = EventLog.open(f"sqlite:///{path}")
    log.acquire_term("me")
    log.append([entry("a")])
    for file in tmp_path.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file
    log.close()
