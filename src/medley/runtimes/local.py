"""A pool of processes on this machine, for as long as a `with` block lasts: coordinator, shard nodes, workers.

The processes run under a watchdog process of their own (`runtimes.up`), exactly as `medley up` runs them.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

from medley.protocol.conditions import Network
from medley.protocol.errors import Unavailable, UserError
from medley.runtimes.clock import SystemClock
from medley.runtimes.options import write_options
from medley.runtimes.up import UpOptions
from medley.transports.control.operator import OperatorClient
from medley.transports.identity import Credentials

WATCHDOG = "medley.cli.process_up"
START_S = 120.0
END_S = 90.0


class Pool:
    """`operator` asks its coordinator; `address` says where everything listens."""

    def __init__(
        self,
        directory: Path,
        workers: int = 3,
        shard_nodes: int = 2,
        *,
        encrypt: bool = False,
        environment: dict[str, str] | None = None,
        allow_code: bool = True,
        transport: str = "auto",
        network: Network | None = None,
        compute_factors: tuple[float, ...] = (),
    ) -> None:
        self.options = UpOptions(
            directory,
            workers=workers,
            shard_nodes=shard_nodes,
            encrypt=encrypt,
            environment=environment or {},
            allow_code=allow_code,
            transport=transport,
            network=network or Network(),
            compute_factors=compute_factors,
        )
        self._process: subprocess.Popen[bytes] | None = None
        self._operator: OperatorClient | None = None
        self.address: dict[str, str] = {}

    @property
    def pid(self) -> int:
        """The watchdog's process id."""
        return self._process.pid if self._process is not None else 0

    def start(self) -> Self:
        """Start the processes and wait until the coordinator answers. Raises UserError with its sentence."""
        directory = self.options.directory
        try:
            directory.mkdir(parents=True, exist_ok=True)
            path = directory / "up.json"
            write_options(path, self.options)
        except OSError as error:
            raise UserError(f"{directory} cannot be used: {error.strerror}") from None
        self._process = subprocess.Popen(
            [sys.executable, "-m", WATCHDOG, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for the person's command, which then stops the pool in order
        )
        self.address = self._first_line()
        self._operator = OperatorClient(self.address["control"], Credentials.load(directory / "operator.pem"))
        return self

    def _first_line(self) -> dict[str, str]:
        assert self._process is not None and self._process.stdout is not None
        timer = threading.Timer(START_S, self._process.kill)
        timer.start()
        line = self._process.stdout.readline()
        timer.cancel()
        try:
            said: dict[str, str] = json.loads(line)
        except ValueError:
            raise Unavailable("the pool's processes did not start; see its logs") from None
        if "problem" in said:
            self._process.wait()
            raise UserError(said["problem"])
        return said

    @property
    def operator(self) -> OperatorClient:
        assert self._operator is not None, "the pool is not started"
        return self._operator

    def wait_ready(self, timeout_s: float = 60.0) -> None:
        """Until every machine of this pool is connected. Raises Unavailable."""
        wanted = self.options.workers + self.options.shard_nodes
        clock, tick = SystemClock(), threading.Event()
        deadline_ns = clock.now_ns() + int(timeout_s * 1e9)
        while sum(n["connected"] for n in self.operator.ask("nodes")["nodes"]) < wanted:
            if clock.now_ns() > deadline_ns:
                raise Unavailable(f"not all of {wanted} machines connected within {timeout_s:.0f} s")
            tick.wait(0.1)

    def stop(self) -> None:
        """Save and end everything."""
        if self._operator is not None:
            self._operator.close()
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(END_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        self._process.wait()

    def abandon(self) -> None:
        """End everything at once and save nothing; `stop` then finds it ended."""
        if self._process is not None:
            self._process.kill()  # every process below it notices at once, and ends

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()
