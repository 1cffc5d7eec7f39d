"""Runs over processes: bounded, in a fixed order, each result on disk before it counts.

Promises: a run that is kept already is not run again; an interruption ends the processes and loses only what was
under way; a process that dies costs its run alone, with the last line it said.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue

from medley.jobs.experiments import runs
from medley.jobs.experiments.runs import Task

POLL_S = 0.25
MAX_SAID_LINES = 20


@dataclass(frozen=True, slots=True)
class Reached:
    """A run's world is at this virtual second."""

    task: Task
    at_s: float


@dataclass(frozen=True, slots=True)
class Finished:
    task: Task


@dataclass(frozen=True, slots=True)
class Died:
    """A run's process ended without a result."""

    task: Task
    said: str


Event = Reached | Finished | Died


@dataclass(slots=True)
class Pool:
    """So many processes at work on a list of runs."""

    folder: Path
    tasks: deque[Task]
    processes: int
    _events: SimpleQueue[Event] = field(default_factory=SimpleQueue)
    _children: list[subprocess.Popen[str]] = field(default_factory=list)
    _threads: list[threading.Thread] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _stopped: bool = False

    def events(self) -> Iterator[Event | None]:
        """What happens, as it happens; None whenever a while passed without. Ends when all runs have ended."""
        for number in range(min(self.processes, len(self.tasks))):
            thread = threading.Thread(target=self._work, name=f"runs-{number}", daemon=True)
            self._threads.append(thread)
            thread.start()
        while any(thread.is_alive() for thread in self._threads) or not self._events.empty():
            try:
                yield self._events.get(timeout=POLL_S)
            except Empty:
                yield None

    def stop(self) -> None:
        """End the processes; what they were at is lost."""
        with self._lock:
            self._stopped = True
            children = list(self._children)
        for child in children:
            child.kill()
        for thread in self._threads:
            thread.join(timeout=10)

    def _work(self) -> None:
        child: subprocess.Popen[str] | None = None
        while (task := self._next()) is not None:
            if child is None:
                child = self._start()
            if child is None:
                return
            event = self._one(child, task)
            if isinstance(event, Died):
                _end(child)
                child = None
            self._events.put(event)
        if child is not None:
            _end(child)

    def _next(self) -> Task | None:
        with self._lock:
            return self.tasks.popleft() if self.tasks and not self._stopped else None

    def _start(self) -> subprocess.Popen[str] | None:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        with self._lock:
            if self._stopped:
                return None
            child = subprocess.Popen(
                [sys.executable, "-m", "medley.jobs.experiments.child"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                encoding="utf-8",
                env=environment,
                start_new_session=True,  # Ctrl-C is its parent's to answer
            )
            self._children.append(child)
            return child

    def _one(self, child: subprocess.Popen[str], task: Task) -> Event:
        assert child.stdin is not None and child.stdout is not None
        order = {"folder": str(self.folder), "key": task.key, "repeat": task.repeat, "data": task.data}
        said: deque[str] = deque(maxlen=MAX_SAID_LINES)
        with suppress(OSError):  # one that is gone says why in its last lines
            child.stdin.write(json.dumps(order) + "\n")
            child.stdin.flush()
        for line in child.stdout:
            match _parsed(line):
                case {"key": task.key}:
                    return Finished(task)
                case {"at_s": float() | int() as at_s}:
                    self._events.put(Reached(task, float(at_s)))
                case _:
                    said.append(line.strip())
        child.wait()
        return Died(task, next((line for line in reversed(said) if line), f"exit status {child.returncode}"))


def _end(child: subprocess.Popen[str]) -> None:
    """It ends with its stdin."""
    for pipe in (child.stdin, child.stdout):
        if pipe is not None:
            with suppress(OSError):
                pipe.close()
    child.wait()


def _parsed(line: str) -> object:
    try:
        return json.loads(line)
    except ValueError:
        return None


def missing(folder: Path, tasks: Sequence[Task]) -> list[Task]:
    """Runs that have no kept result; those of one name (points that do not differ) once."""
    seen: set[str] = set()
    left = []
    for task in tasks:
        if task.key not in seen and not runs.path_of(folder, task.key).is_file():
            left.append(task)
        seen.add(task.key)
    return left


def run_all(folder: Path, tasks: Sequence[Task], processes: int, tell: Callable[[Event | None], None]) -> None:
    """Run what is missing; `tell` hears of it. KeyboardInterrupt passes on after the end of the processes."""
    pool = Pool(folder, deque(missing(folder, tasks)), max(1, processes))
    try:
        for event in pool.events():
            tell(event)
    finally:
        pool.stop()
