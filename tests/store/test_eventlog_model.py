"""Any sequence of appends, compactions, take-overs and reopenings leaves what a list and a number would
hold."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from medley.store.errors import Fenced
from medley.store.eventlog import Entry, EventLog

HANDLES = st.integers(0, 1)
STREAMS = st.sampled_from(["pool", "job/a", "job/b"])
BODIES = st.binary(max_size=20)


@dataclass
class Model:
    """What the log should hold: (seq, term, stream, body), and the terms that were given out."""

    rows: list[tuple[int, int, str, bytes]]
    last_seq: int = 0
    term: int = 0


def machine(fresh_url: Callable[[], str]) -> type[RuleBasedStateMachine]:
    class LogMachine(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.url = fresh_url()
            self.logs = [EventLog.open(self.url), EventLog.open(self.url)]
            self.model = Model([])

        def teardown(self) -> None:
            for log in self.logs:
                log.close()

        def may_write(self, handle: int) -> bool:
            return 0 < self.logs[handle].term == self.model.term

        @rule(handle=HANDLES)
        def take_over(self, handle: int) -> None:
            self.model.term += 1
            assert self.logs[handle].acquire_term(f"handle {handle}") == self.model.term

        @rule(handle=HANDLES)
        def reopen(self, handle: int) -> None:
            self.logs[handle].close()
            self.logs[handle] = EventLog.open(self.url)

        @rule(handle=HANDLES, entries=st.lists(st.tuples(STREAMS, BODIES), min_size=1, max_size=5))
        def append(self, handle: int, entries: list[tuple[str, bytes]]) -> None:
            batch = [Entry(stream, "k", body) for stream, body in entries]
            if not self.may_write(handle):
                with pytest.raises(Fenced):
                    self.logs[handle].append(batch)
                return
            for stream, body in entries:
                self.model.last_seq += 1
                self.model.rows.append((self.model.last_seq, self.model.term, stream, body))
            assert self.logs[handle].append(batch) == self.model.last_seq

        @rule(handle=HANDLES, stream=STREAMS, upto=st.integers(0, 30), body=BODIES)
        def compact(self, handle: int, stream: str, upto: int, body: bytes) -> None:
            old = [row for row in self.model.rows if row[2] == stream and row[0] <= upto]
            expected: type[Exception] | None = None if self.may_write(handle) else Fenced
            if expected is None and not old:
                expected = ValueError
            if expected is not None:
                with pytest.raises(expected):
                    self.logs[handle].compact(stream, upto, Entry(stream, "k", body))
                return
            self.logs[handle].compact(stream, upto, Entry(stream, "k", body))
            snapshot = (old[-1][0], self.model.term, stream, body)
            self.model.rows = sorted([row for row in self.model.rows if row not in old] + [snapshot])

        @invariant()
        def both_handles_read_the_model(self) -> None:
            for log in self.logs:
                assert [(s.seq, s.term, s.stream, s.body) for s in log.read()] == self.model.rows
                assert log.last_seq() == self.model.last_seq
            middle = self.model.last_seq // 2
            tail = [row[0] for row in self.model.rows if row[2] == "pool" and row[0] > middle]
            assert [s.seq for s in self.logs[0].read("pool", middle)] == tail

    return LogMachine


def check(fresh_url: Callable[[], str], examples: int) -> None:
    bounds = settings(
        max_examples=examples,
        stateful_step_count=20,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(machine(fresh_url), settings=bounds)


def test_sqlite_holds_what_the_model_holds(tmp_path: Path) -> None:
    check(lambda: f"sqlite:///{tmp_path / secrets.token_hex(8)}.db", examples=8)


def test_postgres_holds_what_the_model_holds(postgres_url: str) -> None:
    import psycopg

    def fresh() -> str:
        name = f"model_{secrets.token_hex(8)}"
        with psycopg.connect(f"{postgres_url}/postgres", autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{name}"')
        return f"{postgres_url}/{name}"

    check(fresh, examples=3)
