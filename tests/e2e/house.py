"""A whole pool of real processes for a test: started, asked patiently, killed by name, and its log read afterwards."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from bench.killing import kill, processes
from tests.waiting import until

from medley.protocol.codec import Codec
from medley.protocol.errors import Unavailable
from medley.protocol.records import Record
from medley.roles.coordinator import Coordinator
from medley.roles.state import RunState
from medley.runtimes.local import Pool
from medley.store.eventlog import EventLog

RECORDS = Codec(Record)
LONG_S = 150.0  # everything here takes seconds; a machine that is busy with other things takes longer
OVER = ("done", "failed", "cancelled")


class House:
    """`pool` and one job in it."""

    def __init__(self, directory: Path, **options: Any) -> None:
        self.directory = directory
        self._options = options
        self.pool = Pool(directory, **options)
        self.job = ""

    def start(self) -> None:
        """A pool on this directory; one that was here before goes on."""
        self.pool = Pool(self.directory, **self._options)
        self.pool.start()
        self.pool.wait_ready()

    def submit(self, spec: dict[str, Any]) -> None:
        self.job = self.pool.operator.ask("submit", {"spec": spec})["job"]

    def look(self) -> dict[str, Any]:
        """The job now; {} while nobody answers."""
        try:
            found: dict[str, Any] = self.pool.operator.ask("job", {"job": self.job}, timeout_s=20)["job"]
        except Unavailable:
            return {}
        return found

    def until_version(self, version: int) -> None:
        """Committed so far, or over already, which fails."""

        def there() -> bool:
            seen = self.look()
            assert seen.get("state") not in OVER or seen["version"] >= version, seen
            return seen.get("version", -1) >= version

        until(there, deadline_s=LONG_S, what=f"version {version}")

    def until_moved(self) -> None:
        """One commit further than now, in whatever generation."""
        before = self.mark()
        until(lambda: self.look().get("version", -1) > -1 and self.mark() != before, deadline_s=LONG_S, what="a commit")

    def mark(self) -> tuple[object, ...]:
        seen = self.look()
        return (seen.get("generation"), seen.get("version"), seen.get("state"))

    def until_over(self) -> dict[str, Any]:
        """The finished job."""
        until(lambda: self.look().get("state") in OVER, deadline_s=LONG_S, what=f"the end of {self.job}")
        return self.look()

    def kill(self, name: str) -> None:
        """SIGKILL a process by its name (see `bench.killing`) as soon as it is there."""
        until(
            lambda: name in processes(self.pool.pid) and kill(processes(self.pool.pid)[name]),
            deadline_s=LONG_S,
            what=f"the process {name}",
        )

    def alive(self) -> bool:
        """Does the watchdog still run?"""
        try:
            return psutil.Process(self.pool.pid).status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    def restored(self) -> RunState:
        """The job as a restarted coordinator would find it. Only while none runs."""
        log = EventLog.open(f"sqlite:///{self.directory / 'events.db'}")
        role = Coordinator(0)
        role.restore((s.stream, RECORDS.from_json(s.kind, s.body)) for s in log.read())
        log.close()
        return role.runs[self.job].state

    def decisions(self) -> list[str]:
        path = self.directory / "decisions.jsonl"
        return [json.loads(line)["text"] for line in path.read_text().splitlines()]


@contextmanager
def house(directory: Path, **options: Any) -> Iterator[House]:
    """A running pool; whatever becomes of the test, no process stays."""
    made = House(directory, **options)
    made.start()
    try:
        yield made
    finally:
        made.pool.stop()


def proof(samples: int = 1024, step_ms: float = 20.0, **train: Any) -> dict[str, Any]:
    """The integer proof as a small job."""
    from bench.storm import spec

    wanted = spec("sync", samples, 1)
    wanted["task_options"] = {"samples": samples, "step_ms": step_ms}
    wanted["placement"]["block_elements"] = 1024
    wanted["train"] |= train
    return wanted
