"""A coordinator and this machine's own nodes under one watchdog: what `medley up` runs, and every local pool.

Local nodes get their certificates from the authority directly; machines elsewhere join with a token.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from medley.protocol.errors import UserError
from medley.runtimes.clock import SystemClock
from medley.runtimes.coordinator import CoordinatorOptions
from medley.runtimes.node import NodeOptions
from medley.runtimes.supervisor import Child, Supervisor
from medley.transports.identity import Authority

COORDINATOR = "medley.cli.process_coordinator"
NODE = "medley.cli.process_node"
READY_S = 30.0


@dataclass(frozen=True, slots=True)
class UpOptions:
    """`workers` machines that train and `shard_nodes` that hold parameters are started here as processes.

    With no shard nodes the workers hold the parameters too.
    """

    directory: Path
    host: str = "127.0.0.1"
    control_port: int = 0
    door_port: int = 0
    http_port: int = 0
    advertised: tuple[str, ...] = ()
    workers: int = 1
    shard_nodes: int = 0
    encrypt: bool = True
    announce: bool = False
    url: str = ""
    allow_code: bool = True
    environment: dict[str, str] = field(default_factory=dict)


class LocalPool:
    """The processes of one machine. `run` ends when `stop` was called, or when the coordinator cannot run."""

    def __init__(self, options: UpOptions) -> None:
        self.options = options
        self.problem = ""
        self._stop = asyncio.Event()
        self.supervisor = Supervisor(options.directory / "logs", self._gave_up)

    def stop(self) -> None:
        self._stop.set()

    def _gave_up(self, name: str, status: int) -> None:
        lines = (self.options.directory / "logs" / f"{name}.err").read_text(errors="replace").strip().splitlines()
        self.problem = lines[-1] if lines else f"{name} ended with status {status}"
        self._stop.set()

    async def run(self, ready: Callable[[dict[str, object]], None]) -> None:
        """Start everything, tell where it listens, wait for `stop`, save and end everything.

        Raises UserError when the coordinator cannot run here.
        """
        directory = self.options.directory
        try:
            directory.mkdir(parents=True, exist_ok=True)
            lock = directory / "address.json"
            _refuse_second(lock)
            lock.unlink(missing_ok=True)
        except OSError as error:
            raise UserError(f"{directory} cannot be used: {error.strerror}; choose another with --dir") from None
        async with asyncio.TaskGroup() as tasks:
            keeping = [tasks.create_task(self.supervisor.keep(self._coordinator()))]
            address = await self._address(lock)
            if address is not None:
                keeping += [tasks.create_task(self.supervisor.keep(node)) for node in self._nodes(address)]
                ready(address)
                await self._stop.wait()
            await self.supervisor.end(["coordinator"])
            await self.supervisor.end([n for n in self.supervisor.children if n != "coordinator"])
            for task in keeping:
                task.cancel()
        lock.unlink(missing_ok=True)
        if self.problem:
            raise UserError(self.problem)

    def _coordinator(self) -> Child:
        options = self.options
        wanted = CoordinatorOptions(
            options.directory,
            options.host,
            options.control_port,
            options.door_port,
            options.http_port,
            options.advertised,
            options.encrypt,
            options.announce,
            options.url,
        )
        path = options.directory / "coordinator.json"
        path.write_bytes(msgspec.json.encode(wanted, enc_hook=str))
        return Child("coordinator", COORDINATOR, (str(path),), dict(options.environment))

    async def _address(self, path: Path) -> dict[str, object] | None:
        """Where the coordinator listens, once it does. The ports stay the same over its restarts."""
        clock = SystemClock()
        deadline_ns = clock.now_ns() + int(READY_S * 1e9)
        while not path.exists() and not self._stop.is_set():
            if clock.now_ns() > deadline_ns:
                self.problem = f"the coordinator did not start within {READY_S:.0f} s; see {path.parent / 'logs'}"
                return None
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), 0.05)
        if not path.exists():
            return None
        address: dict[str, object] = json.loads(path.read_text())
        self._keep_ports(address)
        return address

    def _keep_ports(self, address: dict[str, object]) -> None:
        path = self.options.directory / "coordinator.json"
        wanted = json.loads(path.read_text())
        for key, where in (("control_port", "control"), ("door_port", "door"), ("http_port", "http")):
            wanted[key] = int(str(address[where]).rpartition(":")[2])
        path.write_text(json.dumps(wanted))

    def _nodes(self, address: dict[str, object]) -> list[Child]:
        options = self.options
        names = [(f"worker-{n + 1}", True) for n in range(options.workers)]
        names += [(f"shard-{n + 1}", False) for n in range(options.shard_nodes)]
        return [self._node(name, worker, str(address["control"])) for name, worker in names]

    def _node(self, name: str, worker: bool, control: str) -> Child:
        options = self.options
        place = options.directory / "nodes" / name
        place.mkdir(parents=True, exist_ok=True)
        cores = os.cpu_count() or 1
        wanted = NodeOptions(
            name=name,
            control=control,
            directory=place,
            worker=worker,
            shard=not worker or options.shard_nodes == 0,
            threads=max(1, cores // max(1, options.workers)),
            allow_code=options.allow_code,
        )
        now_ns = SystemClock().wall_ns()
        Authority.open(options.directory, now_ns).enrol(name, "node", now_ns).save(place / "credentials.pem")
        path = place / "options.json"
        path.write_bytes(msgspec.json.encode(wanted, enc_hook=str))
        return Child(name, NODE, (str(path), str(place / "credentials.pem")), dict(options.environment))


def _refuse_second(path: Path) -> None:
    """Two coordinators on one directory would fence each other for ever."""
    try:
        pid = int(json.loads(path.read_text())["pid"])
        os.kill(pid, 0)
    except (OSError, ValueError, KeyError):
        return
    raise UserError(
        f"a coordinator runs already in {path.parent} (process {pid}); use it, stop it, or choose another --dir"
    )
