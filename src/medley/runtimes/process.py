"""A child process seen from its parent: spawn, command, hear, end, and learn how it died.

A child says something every second; one that is silent for long hangs and is ended, which is a death like any other.
How long is long depends on who waits for it (`Patience`).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from medley.concurrency import TaskGroup
from medley.observe.logs import logger
from medley.protocol.engine import Command, EngineExited, Report
from medley.runtimes.clock import SystemClock
from medley.runtimes.pipe import COMMANDS, REPORTS, frame, read_frame

LAST_WORDS_S = 1.0  # from the end of its pipe to its own
_CGROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class Patience:
    """How often a parent looks whether its child says something, and how long the child may say nothing.

    A child's event loop does not compute, so no load of the machine explains a minute of silence. Before its first
    word it imports its libraries, from a cold disk at worst.
    """

    look_s: float = 1.0
    silent_s: float = 60.0
    starting_s: float = 300.0


ONE_MINUTE = Patience()


class EngineProcess:
    """One engine. `run` owns the process; `say` hands it a command; `heard` gets every report, EngineExited last."""

    def __init__(
        self,
        kind: str,
        heard: Callable[[Report], None],
        environment: dict[str, str] | None = None,
        patience: Patience = ONE_MINUTE,
    ) -> None:
        self._kind = kind
        self._heard = heard
        self._environment = {**os.environ, **(environment or {})}
        self._commands: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._process: asyncio.subprocess.Process | None = None
        self._log = logger("engine", kind=kind)
        self._silent_s = 0.0
        self._patience = patience
        self._silence_max_s = patience.starting_s
        self._hung = ""

    @property
    def pid(self) -> int:
        return self._process.pid if self._process is not None else 0

    def say(self, command: Command) -> None:
        self._commands.put_nowait(frame(COMMANDS.encode(command)))

    def kill(self) -> None:
        """End it at once; `run` then says how it ended."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()

    async def run(self) -> None:
        """Spawn, and live until the child is gone. Cancelled: the child is ended."""
        before = _oom_kills()
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "medley.runtimes.child",
            self._kind,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=self._environment,
        )
        self._process = process
        try:
            async with TaskGroup() as tasks:
                beside = [tasks.create_task(self._write(process)), tasks.create_task(self._watch())]
                await self._read(process)
                await _reaped(process)
                for task in beside:
                    task.cancel()
        finally:
            if process.returncode is None:
                process.kill()
            code = await process.wait()
        reason, memory = (self._hung, False) if self._hung else _how(code, _oom_kills() > before)
        self._log.info("engine ended", reason=reason)
        self._heard(EngineExited(reason, memory))

    async def _watch(self) -> None:
        """Counts in looks and not by the clock: when we were stopped ourselves, the child is not to blame."""
        clock = SystemClock()
        while self._silent_s < self._silence_max_s:
            await clock.sleep(self._patience.look_s)
            self._silent_s += self._patience.look_s
        self._hung = f"it said nothing for {self._silent_s:g} s, so it was ended"
        self._log.warning("engine is silent and is ended")
        self.kill()

    async def _write(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdin is not None
        while (data := await self._commands.get()) is not None:
            try:
                process.stdin.write(data)
                await process.stdin.drain()
            except (BrokenPipeError, ConnectionError):
                return

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        while (data := await read_frame(process.stdout)) is not None:
            self._silent_s, self._silence_max_s = 0.0, self._patience.silent_s
            self._heard(REPORTS.decode(data))


async def _reaped(process: asyncio.subprocess.Process) -> None:
    """Its pipe has ended, so it is about to: killing it now could take its exit status from who waits for it."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LAST_WORDS_S):
            await process.wait()


def _how(code: int, oom: bool) -> tuple[str, bool]:
    """A sentence for an exit status, and whether memory was the cause as far as one can tell."""
    if code == -getattr(signal, "SIGKILL", 9):
        return ("killed by the system for memory", True) if oom else ("killed", False)
    if code < 0:
        try:
            return f"ended by {signal.Signals(-code).name}", False
        except ValueError:
            return f"ended by signal {-code}", False
    return f"exit status {code}", False


def _oom_kills() -> int:
    """How often the system has killed for memory in our control group (0 where it does not tell)."""
    try:
        groups = [line.split(":", 2)[1:] for line in Path("/proc/self/cgroup").read_text().splitlines()]
    except OSError:
        return 0
    old = [_CGROUPS / "memory" / path.lstrip("/") / "memory.oom_control" for kinds, path in groups if kinds == "memory"]
    new = [_CGROUPS / path.lstrip("/") / "memory.events" for kinds, path in groups if not kinds]
    return max(map(_counted, old + new), default=0)


def _counted(place: Path) -> int:
    try:
        counts = dict(line.split(maxsplit=1) for line in place.read_text().splitlines())
        return int(counts.get("oom_kill", "0"))
    except (OSError, ValueError):
        return 0
