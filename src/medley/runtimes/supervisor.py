"""The watchdog: starts processes, starts them again when they die, ends them in order.

A few lines that must not fail. Children notice the supervisor's own death by their standard input, whose other
end it holds; so after `kill -9` of anything, nothing is left behind and everything can be started again.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from medley.concurrency import TaskGroup
from medley.observe.logs import logger
from medley.protocol.ids import NS_PER_S
from medley.runtimes.clock import SystemClock

BACKOFF_S = (0.0, 0.1, 0.3, 1.0, 2.0)
STEADY_NS = 5 * NS_PER_S
END_S = 70.0
LAST_WORDS_S = 0.2
ERRORS_NBYTES_MAX = 4 << 20
MISTAKE = 2  # an exit status that says: a person must change something; starting again cannot help


@dataclass(slots=True)
class Child:
    """One supervised process. `module` runs as `python -m module arguments`."""

    name: str
    module: str
    arguments: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)
    process: asyncio.subprocess.Process | None = None
    restarts: int = 0
    ending: bool = False


class Supervisor:
    """Owns children until `end`. `gave_up` hears a name and a status when a child must not be started again."""

    def __init__(self, log_dir: Path, gave_up: Callable[[str, int], None]) -> None:
        self._log_dir = log_dir
        self._gave_up = gave_up
        self._clock = SystemClock()
        self._log = logger("supervisor")
        self.children: dict[str, Child] = {}

    async def keep(self, child: Child) -> None:
        """Run `child` for ever, or until `end`."""
        self.children[child.name] = child
        failures = 0
        while not child.ending:
            born_ns = self._clock.now_ns()
            status = await self._once(child)
            if child.ending:
                return
            if status == MISTAKE:
                self._gave_up(child.name, status)
                return
            failures = 0 if self._clock.now_ns() - born_ns > STEADY_NS else failures + 1
            child.restarts += 1
            delay_s = BACKOFF_S[min(failures, len(BACKOFF_S) - 1)] if failures > 1 else 0.0
            self._log.warning("process ended", name=child.name, status=status, again_in_s=delay_s)
            await self._clock.sleep(delay_s)

    async def _once(self, child: Child) -> int:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            child.module,
            *child.arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, **child.environment},
            # Ctrl-C in a terminal is for the whole group: nodes must outlive the coordinator's last checkpoint.
            start_new_session=True,  # Windows has none and does not look at it
            creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
        )
        child.process = process
        async with TaskGroup() as tasks:
            keeping = tasks.create_task(self._keep_errors(process, self._log_dir / f"{child.name}.err"))
            try:
                status = await process.wait()
            finally:
                if process.returncode is None:
                    process.kill()
                    await process.wait()
            # Its own children may hold the pipe for a moment longer; its last words are in it already.
            await asyncio.wait([keeping], timeout=LAST_WORDS_S)
            keeping.cancel()
        return status

    async def _keep_errors(self, process: asyncio.subprocess.Process, path: Path) -> None:
        """Standard error into a file that never grows beyond bounds: strangers at our ports make lines in it."""
        assert process.stderr is not None
        while data := await process.stderr.read(1 << 16):
            with contextlib.suppress(OSError):  # a full disk costs the log, not the process
                path.parent.mkdir(parents=True, exist_ok=True)
                if path.exists() and path.stat().st_size + len(data) > ERRORS_NBYTES_MAX:
                    path.replace(path.with_suffix(".err.1"))
                with path.open("ab") as file:
                    file.write(data)

    async def end(self, names: Sequence[str]) -> None:
        """Ask these to stop, wait, and end those that do not."""
        ending = [self.children[n] for n in names if n in self.children]
        for child in ending:
            child.ending = True
            if child.process is not None and child.process.returncode is None:
                child.process.terminate()
        for child in ending:
            if child.process is None:
                continue
            try:
                await asyncio.wait_for(child.process.wait(), END_S)
            except TimeoutError:
                child.process.kill()

    def kill(self, name: str) -> int:
        """SIGKILL one child (it is started again); its process id."""
        process = self.children[name].process
        if process is None or process.returncode is not None:
            return 0
        process.send_signal(getattr(signal, "SIGKILL", signal.SIGTERM))
        return process.pid
