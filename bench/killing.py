"""Finds the processes of a local pool and ends them as `kill -9` does, at a moment or at a failpoint.

For the storm, the recovery times and the end-to-end tests; works where psutil does.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

KINDS = ("worker", "worker-engine", "shard", "shard-engine", "coordinator", "vault")


def processes(watchdog: int) -> dict[str, int]:
    """Process id by name: coordinator, vault, preparer, worker-1, worker-1-engine, shard-1, shard-1-engine ..."""
    found: dict[str, int] = {}
    for name, process in _named(watchdog):
        found[name] = process.pid
    return found


def family(watchdog: int) -> list[psutil.Process]:
    """The watchdog and everything below it."""
    try:
        root = psutil.Process(watchdog)
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def kind_of(name: str) -> str:
    """`worker-3-engine` -> `worker-engine`."""
    return "".join(c for c in name if not c.isdigit()).replace("--", "-").strip("-")


def kill(pid: int) -> bool:
    """SIGKILL; False if it was gone already."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def _named(watchdog: int) -> Iterator[tuple[str, psutil.Process]]:
    try:
        children = psutil.Process(watchdog).children()
    except psutil.NoSuchProcess:
        return
    for child in children:
        words = _words(child)
        if "medley.cli.process_coordinator" in words:
            yield "coordinator", child
            yield from _engines(child, lambda kind: kind)
        elif "medley.cli.process_node" in words:
            name = Path(words[words.index("medley.cli.process_node") + 1]).parent.name
            yield name, child
            yield from _engines(child, lambda _, name=name: f"{name}-engine")  # type: ignore[misc]


def _engines(parent: psutil.Process, name: Callable[[str], str]) -> Iterator[tuple[str, psutil.Process]]:
    try:
        children = parent.children()
    except psutil.NoSuchProcess:
        return
    for child in children:
        words = _words(child)
        if "medley.runtimes.child" in words:
            yield name(words[-1]), child


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


class Boundaries:
    """The failpoints of one directory (see `medley.observe.failpoints`)."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.armed: set[str] = set()

    @property
    def environment(self) -> dict[str, str]:
        """For the processes that should obey."""
        return {"MEDLEY_FAILPOINTS": str(self.directory)}

    def arm(self, name: str, order: str = "") -> None:
        """The next process that comes by dies there."""
        (self.directory / name).write_text(order)
        self.armed.add(name)

    def disarm(self) -> None:
        for name in self.armed - self.fired():
            (self.directory / name).unlink(missing_ok=True)
        self.armed.clear()

    def fired(self) -> set[str]:
        return {p.name.rpartition(".fired.")[0] for p in self.directory.glob("*.fired.*")}

    def seen(self) -> set[str]:
        """Every failpoint that any process has passed so far, whole lines only."""
        names: set[str] = set()
        for path in self.directory.glob("seen.*"):
            text = path.read_text(errors="replace")
            names.update(text[: text.rfind("\n") + 1].split())
        return names
