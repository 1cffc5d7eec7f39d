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

from medley.concurrency import TaskGroup
from medley.protocol.conditions import Network
from medley.protocol.errors import MedleyError, UserError
from medley.runtimes.addresses import advertised, is_loopback, reachable_here
from medley.runtimes.children.environment import MEMORY_SHARE, PORTS, ports
from medley.runtimes.clock import SystemClock
from medley.runtimes.coordinator import CoordinatorOptions
from medley.runtimes.lifeline import on_stop
from medley.runtimes.lock import Lock
from medley.runtimes.node import NodeOptions
from medley.runtimes.options import write_options
from medley.runtimes.supervisor import Child, Supervisor
from medley.transports.control.operator import OperatorClient
from medley.transports.identity import Authority, Credentials

COORDINATOR = "medley.cli.process_coordinator"
NODE = "medley.cli.process_node"
READY_S = 90.0
TENSOR_PORTS = "7080-7179"


@dataclass(frozen=True, slots=True)
class UpOptions:
    """`workers` machines that train and `shard_nodes` that hold parameters are started here as processes.

    With no shard nodes the workers hold the parameters too. `tensor_ports` counts only where other machines may come.
    `network`: the emulated link of each of these machines; `compute_factors`: of the workers, in their order, how many
    times slower than they can they compute (1 for those that are missing).
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
    scheduler: str = "fifo"
    quotas: dict[str, int] = field(default_factory=dict)  # machines of each queue of jobs at once
    allow_code: bool = True
    tensor_ports: str = TENSOR_PORTS
    transport: str = "auto"  # of the nodes started here
    network: Network = field(default_factory=Network)
    compute_factors: tuple[float, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)


def run_up(
    options: UpOptions,
    tell: Callable[[str], None] = print,
    ready: Callable[[dict[str, object]], None] = lambda where: None,
) -> None:
    """`medley up`: run until Ctrl-C or SIGTERM, saying in a few lines what a person needs next. Raises UserError.

    `ready` hears where everything listens, once it does.
    """
    asyncio.run(_run_up(options, tell, ready))
    tell("everything is saved; 'medley up' goes on from here")


async def _run_up(options: UpOptions, tell: Callable[[str], None], ready: Callable[[dict[str, object]], None]) -> None:
    pool = LocalPool(options)
    on_stop(pool.stop)
    async with TaskGroup() as tasks:
        saying: list[asyncio.Task[None]] = []

        def listening(address: dict[str, object]) -> None:
            ready(address)
            saying.append(tasks.create_task(_say(options, address, tell)))

        await pool.run(listening)
        for task in saying:
            task.cancel()


async def _say(options: UpOptions, address: dict[str, object], tell: Callable[[str], None]) -> None:
    tell(f"coordinator up; its state lies in {options.directory} (Ctrl-C saves and stops)")
    tell(f"  page   {address['http']}")
    if is_loopback(options.host):
        tell("only this machine reaches it; --host 0.0.0.0 lets others in")
        return
    try:
        token = await asyncio.to_thread(_fresh_token, options.directory, str(address["control"]))
    except MedleyError as error:
        tell(f"no token yet ({error}); 'medley token create' makes one")
        return
    tell("another machine joins with this line (for one machine, for an hour; 'medley token create' prints more):")
    tell(f"  medley join --token {token}")


def _fresh_token(directory: Path, control: str) -> str:
    with OperatorClient(control, Credentials.load(directory / "operator.pem")) as operator:
        return str(operator.ask("token", timeout_s=READY_S)["token"])


class LocalPool:
    """The processes of one machine. `run` ends when `stop` was called, or when the coordinator cannot run."""

    def __init__(self, options: UpOptions) -> None:
        self.options = options
        self.problem = ""
        self.ports = "" if is_loopback(options.host) else os.environ.get(PORTS, options.tensor_ports)
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
        if not self.options.encrypt and not is_loopback(self.options.host):
            raise UserError(f"{self.options.host} reaches other machines, so encryption must stay on")
        advertised(self.options.host, self.options.advertised)
        ports(self.ports)
        lock = Lock(
            directory / "lock", f"a coordinator runs already in {directory}; use it, stop it, or choose another --dir"
        )
        try:
            where = directory / "address.json"
            where.unlink(missing_ok=True)
            await self._run(where, ready)
            where.unlink(missing_ok=True)
        except OSError as error:
            raise UserError(f"{directory} cannot be used: {error.strerror}; choose another with --dir") from None
        finally:
            lock.release()
        if self.problem:
            raise UserError(self.problem)

    async def _run(self, where: Path, ready: Callable[[dict[str, object]], None]) -> None:
        coordinator = self._coordinator()
        async with TaskGroup() as tasks:
            keeping = [tasks.create_task(self.supervisor.keep(coordinator))]
            address = await self._address(where)
            if address is not None:
                keeping += [tasks.create_task(self.supervisor.keep(node)) for node in self._nodes(address)]
                ready(address)
                await self._stop.wait()
            await self.supervisor.end(["coordinator"])
            await self.supervisor.end([n for n in self.supervisor.children if n != "coordinator"])
            for task in keeping:
                task.cancel()

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
            self.ports,
            options.scheduler,
            options.quotas,
        )
        path = options.directory / "coordinator.json"
        write_options(path, wanted)
        # gRPC says which handshakes it refused only at this level; it goes to logs/coordinator.err.
        environment = {"GRPC_VERBOSITY": "INFO", **options.environment}
        if is_loopback(options.host):  # no other machine can join, so what does not fit here fits nowhere
            environment = self._share() | environment
        return Child("coordinator", COORDINATOR, (str(path),), environment)

    def _share(self) -> dict[str, str]:
        """What part of this machine's memory each node may count on."""
        nodes = self.options.workers + self.options.shard_nodes
        return {MEMORY_SHARE: f"{1 / nodes:.4f}"} if nodes else {}

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
        factors = [*options.compute_factors[: options.workers], *[1.0] * len(names)][: len(names)]
        control = str(address["control"])
        return [self._node(*name, control, factor) for name, factor in zip(names, factors, strict=True)]

    def _node(self, name: str, worker: bool, control: str, compute_factor: float) -> Child:
        options = self.options
        place = options.directory / "nodes" / name
        place.mkdir(parents=True, exist_ok=True, mode=0o700)
        cores = os.cpu_count() or 1
        wanted = NodeOptions(
            name=name,
            control=control,
            directory=place,
            worker=worker,
            shard=not worker or options.shard_nodes == 0,
            threads=max(1, cores // max(1, options.workers)),
            allow_code=options.allow_code,
            tensor_host=reachable_here(options.host, options.advertised),
            tensor_ports=self.ports,
            encrypt=options.encrypt,
            transport=options.transport,
            network=options.network,
            compute_factor=compute_factor,
        )
        now_ns = SystemClock().wall_ns()
        Authority.open(options.directory, now_ns).enrol(name, "node", now_ns).save(place / "credentials.pem")
        path = place / "options.json"
        write_options(path, wanted)
        return Child(name, NODE, (str(path), str(place / "credentials.pem")), self._share() | options.environment)
