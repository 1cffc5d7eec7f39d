"""A machine of the pool: hosts worker, shard and stage roles, one control stream, one engine process below each role.

Promises: roles hear their events one at a time, in order; an engine's death is an event, never the node's; a
silent engine is ended; the node reconnects for ever. Leaves all decisions to the roles.
"""

from __future__ import annotations

import asyncio
import os
import platform
import random
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import assert_never

import psutil

from medley.concurrency import TaskGroup
from medley.observe.failpoints import hit
from medley.observe.logs import logger
from medley.protocol import effects as fx
from medley.protocol.conditions import Network
from medley.protocol.engine import EngineExited, OpenShard, OpenStage, OpenWorker, Progress
from medley.protocol.engine import Report as EngineReport
from medley.protocol.errors import MedleyError, PeerError
from medley.protocol.events import EngineSaid, Event, Tick, Told
from medley.protocol.ids import NS_PER_S, JobId, NodeId
from medley.protocol.messages import (
    AssignShard,
    AssignStage,
    AssignWorker,
    Called,
    Capability,
    FromNode,
    Heartbeat,
    Hello,
    Leave,
    Refused,
    ToNode,
    Welcome,
)
from medley.protocol.stages.words import STAGE
from medley.protocol.wire import Envelope
from medley.roles.shard import Shard
from medley.roles.stage_host import StageHost
from medley.roles.worker import Worker
from medley.runtimes.addresses import route_to, split
from medley.runtimes.causes import Causes
from medley.runtimes.children.environment import ENCRYPT, HOST, PORTS, ROOM, ports
from medley.runtimes.clock import SystemClock
from medley.runtimes.leftovers import sweep
from medley.runtimes.links import Links
from medley.runtimes.process import ONE_MINUTE, EngineProcess, Patience
from medley.runtimes.shaped import Shaping
from medley.store.artifacts import ArtifactStore
from medley.transports.control.client import ControlClient, renew
from medley.transports.identity import Credentials, needs_renewal, signing_request

TICK_S = 0.25
RENEW_S = 600.0
RESPAWN_FIRST_S, RESPAWN_LAST_S, STEADY_NS = 0.1, 5.0, 5 * NS_PER_S

# A front asks a stage that is late within a second; this is for one that nobody waits for.
SERVING = Patience(look_s=0.25, silent_s=3.0)

Key = tuple[JobId, int]  # shard -1: the worker; STAGE: the stage
Role = Worker | Shard | StageHost


@dataclass(frozen=True, slots=True)
class NodeOptions:
    """`tensor_host` is where peers reach this machine's tensor sockets; empty: its address on the way to `control`.

    `tensor_ports` ("7080-7179") is what a firewall lets through; empty takes any. `transport`: how engines of other
    machines are reached (auto: directly, or through the coordinator; direct; grpc: through the coordinator).
    `network`: an emulated link that this machine stands behind, whatever its jobs say; `compute_factor`: how many times
    slower than it can it computes.
    """

    name: NodeId
    control: str
    directory: Path
    worker: bool = True
    shard: bool = True
    tensor_host: str = "127.0.0.1"
    threads: int = 0
    allow_code: bool = False
    tensor_ports: str = ""
    encrypt: bool = True
    transport: str = "auto"
    network: Network = field(default_factory=Network)
    compute_factor: float = 1.0


@dataclass(slots=True)
class Hosted:
    """A role and its engine's process."""

    role: Role
    causes: Causes = field(default_factory=Causes)
    process: EngineProcess | None = None
    task: asyncio.Task[None] | None = None
    born_ns: int = 0
    respawn_s: float = RESPAWN_FIRST_S


class NodeHost:
    """Runs one node until cancelled."""

    def __init__(
        self, options: NodeOptions, credentials: Credentials, renewed: Callable[[Credentials], None] = lambda new: None
    ) -> None:
        """`renewed` keeps new credentials, so that a restart finds them."""
        self._options = options
        self._credentials = credentials
        self._renewed = renewed
        self._boot = secrets.token_hex(4)
        self._lives = 0  # of worker roles in this process
        self._clock = SystemClock()
        self._roles: dict[Key, Hosted] = {}
        self._events: asyncio.Queue[Callable[[], None]] = asyncio.Queue()
        self._client = ControlClient(rng=random.Random(self._boot))
        self._links = Links(options.directory, options.control, options.transport, lambda: self._credentials)
        self._shaping = Shaping(
            options.network,
            options.name,
            options.worker,
            options.compute_factor,
            options.directory,
            lambda: self._client.shape(self._shaping.control),
        )
        self._client.shape(self._shaping.control)
        self._tasks: asyncio.TaskGroup | None = None
        self._heartbeat_s = 1.0
        self._said = ""
        self._cause = ""  # of the message being handled; what follows from it carries the same
        self._said_count = 0
        self._log = logger("node", node=options.name)

    async def run(self) -> None:
        """Connect, host roles, never return."""
        await asyncio.to_thread(self._tidy)
        async with TaskGroup() as tasks:
            self._tasks = tasks
            ready = asyncio.Event()
            tasks.create_task(self._links.run(ready))
            await ready.wait()
            tasks.create_task(self._shaping.run())
            tasks.create_task(self._consume())
            tasks.create_task(self._tick())
            tasks.create_task(self._beat())
            tasks.create_task(self._renew())
            await self._client.run(
                self._options.control,
                lambda: self._credentials,
                self._hello,
                self._inbox,
                disconnected=self._disconnected,
            )

    def _tidy(self) -> None:
        """An earlier life's engines are gone; so may be what they were writing."""
        room = self._options.directory
        sweep(room, "medley-part-*", "trees/medley-tree-*")
        ArtifactStore(room / "artifacts").sweep(self._clock.wall_ns())

    # -- the control stream -----------------------------------------------------------------------------------

    def _hello(self) -> Hello:
        beat = self._heartbeat()
        return Hello(self._options.name, self._boot, self._capability(), beat.workers, beat.shards)

    def _heartbeat(self) -> Heartbeat:
        roles = [hosted.role for hosted in self._roles.values()]
        workers = tuple(role.status() for role in roles if isinstance(role, Worker))
        shards = tuple(role.status() for role in roles if isinstance(role, Shard | StageHost))
        return Heartbeat(self._options.name, workers, shards)

    def _capability(self) -> Capability:
        options = self._options
        memory = psutil.virtual_memory().available
        cores = os.cpu_count() or 1
        system = f"{platform.system()} {platform.machine()}"
        return Capability(cores, memory, system, options.worker, options.shard)

    def _inbox(self, envelope: Envelope) -> None:
        def act() -> None:
            self._cause = envelope.cause
            self._told(envelope.message)
            self._cause = ""

        self._events.put_nowait(act)

    def _disconnected(self, reason: str) -> None:
        if reason != self._said:
            self._said = reason
            self._log.warning("disconnected", reason=reason)

    def _send(self, message: FromNode) -> None:
        kind = type(message).__name__
        hit(f"node.send.before.{kind}")
        self._said_count += 1
        self._links.said(message)
        self._client.send(message, self._cause or f"{self._options.name}.{self._boot}.{self._said_count}")
        hit(f"node.send.after.{kind}")

    async def _renew(self) -> None:
        """A new certificate when two thirds of the present one's life are over; asked again until there is one."""
        while True:
            try:
                if needs_renewal(self._credentials.cert_pem, self._clock.wall_ns()):
                    await self._renew_now()
            except MedleyError as error:
                self._log.warning("certificate not renewed", reason=str(error))
            await self._clock.sleep(RENEW_S)

    async def _renew_now(self) -> None:
        old = self._credentials
        reply = await renew(self._options.control, old, signing_request(old.key_pem))
        if reply.refused:
            raise PeerError(reply.refused)
        new = Credentials(reply.certificate_pem, old.key_pem, old.authority_pem)
        self._renewed(new)
        self._credentials = new
        self._log.info("certificate renewed")

    # -- events -----------------------------------------------------------------------------------------------

    async def _consume(self) -> None:
        while True:
            (await self._events.get())()

    async def _tick(self) -> None:
        while True:
            await self._clock.sleep(TICK_S)
            for key in list(self._roles):
                self._give(key, Tick())

    async def _beat(self) -> None:
        while True:
            await self._clock.sleep(self._heartbeat_s)
            self._send(self._heartbeat())
            self._shaping.note()

    def _told(self, message: ToNode) -> None:
        self._links.told(message)
        match message:
            case Welcome():
                self._said = ""
                self._heartbeat_s = message.heartbeat_ms / 1000
                self._log.info("connected", term=message.term)
                for key in list(self._roles):
                    self._give(key, Told(message))
            case Refused(reason):
                self._log.error("refused", reason=reason)
            case Called(number, name):
                self._links.called(number, name)
            case AssignWorker(job):
                threads = message.threads or self._options.threads
                self._assigned((job, -1), replace(message, threads=threads))
            case AssignShard(job, _, shard):
                self._assigned((job, shard), replace(message, threads=message.threads or 1))
            case AssignStage(job):
                threads = message.threads or self._options.threads
                self._assigned((job, STAGE), replace(message, threads=threads))
            case Leave(job, _, shard):
                self._leave((job, shard), message)
            case _:
                shard = getattr(message, "shard", -1)
                self._give((message.job, shard), Told(message))

    def _assigned(self, key: Key, message: AssignWorker | AssignShard | AssignStage) -> None:
        if key in self._roles:
            self._give(key, Told(message))
            return
        role = self._role(message)
        self._roles[key] = Hosted(role)
        if not isinstance(message, AssignStage):  # a serving has no network of its own
            self._shaping.assigned(key[0], message.plan)
        self._log.info("assigned", job=key[0], shard=key[1], generation=message.generation)
        self._execute(key, role.start())

    def _role(self, message: AssignWorker | AssignShard | AssignStage) -> Role:
        options = self._options
        match message:
            case AssignStage():
                return StageHost(options.name, message)
            case AssignShard():
                return Shard(message)
            case AssignWorker():
                # A second worker of this process must not repeat the update ids of the first.
                self._lives += 1
                life = self._boot if self._lives == 1 else f"{self._boot}-{self._lives}"
                return Worker(options.name, life, message, options.allow_code)
            case _:
                assert_never(message)

    def _leave(self, key: Key, message: Leave) -> None:
        hosted = self._roles.pop(key, None)
        if hosted is not None:
            self._log.info("left", job=key[0], shard=key[1], reason=message.reason)
            if hosted.task is not None:
                hosted.task.cancel()
            self._shaping.ended(key)
            if not any(job == key[0] for job, _ in self._roles):
                self._shaping.left(key[0])

    def _give(self, key: Key, event: Event) -> None:
        hosted = self._roles.get(key)
        if hosted is not None:
            self._execute(key, hosted.role.handle(event, self._clock.now_ns()))  # type: ignore[arg-type]

    def _execute(self, key: Key, effects: list[fx.Effect]) -> None:
        hosted = self._roles[key]
        for effect in effects:
            if isinstance(effect, fx.Run):
                hosted.causes.given(effect.command, self._cause)
            match effect:
                case fx.Report(message):
                    self._send(message)
                case fx.Run(OpenWorker() | OpenShard() | OpenStage()):
                    self._spawn(key, hosted, effect)
                case fx.Run(command):
                    if hosted.process is not None:
                        hosted.process.say(command)
                case fx.StopEngine(reason):
                    self._log.warning("engine is ended", shard=key[1], reason=reason)
                    if hosted.process is not None:
                        hosted.process.kill()
                case fx.Explain(subject, text):
                    self._log.info("because", subject=subject, text=text, cause=self._cause)
                case fx.Reject(peer, reason):
                    self._log.warning("refused", peer=peer, reason=reason)
                case fx.Persist() | fx.Compact() | fx.Send() | fx.Close():
                    raise AssertionError(f"a node's role cannot {effect}")
                case _:
                    assert_never(effect)

    # -- engines ----------------------------------------------------------------------------------------------

    def _spawn(self, key: Key, hosted: Hosted, effect: fx.Run) -> None:
        """A fresh process; after quick deaths, later and later."""
        assert self._tasks is not None
        now_ns = self._clock.now_ns()
        delay_s = 0.0
        if hosted.born_ns:
            steady = now_ns - hosted.born_ns > STEADY_NS
            delay_s = hosted.respawn_s = RESPAWN_FIRST_S if steady else min(2 * hosted.respawn_s, RESPAWN_LAST_S)
        kind, patience = _KINDS[type(effect.command)]
        process = EngineProcess(
            kind, lambda report: self._reported(key, process, report), self._environment(key), patience
        )
        process.say(effect.command)
        hosted.process = process
        hosted.born_ns = now_ns + int(delay_s * NS_PER_S)
        hosted.task = self._tasks.create_task(self._live(process, delay_s))

    async def _live(self, process: EngineProcess, delay_s: float) -> None:
        if delay_s:
            await self._clock.sleep(delay_s)
        await process.run()

    def _host(self) -> str:
        return self._options.tensor_host or route_to(split(self._options.control)[0])

    def _listening(self) -> tuple[str, range]:
        return self._host(), ports(self._options.tensor_ports)

    def _environment(self, key: Key) -> dict[str, str]:
        options = self._options
        return {
            HOST: self._host(),
            PORTS: options.tensor_ports,
            ENCRYPT: "1" if options.encrypt else "0",
            ROOM: str(options.directory),
            "OMP_NUM_THREADS": str(options.threads or 1),
            **self._links.environment(),
            **self._shaping.environment(key[0], _is_dialled(key)),
        }

    def _reported(self, key: Key, process: EngineProcess, report: EngineReport) -> None:
        def act() -> None:
            hosted = self._roles.get(key)
            if hosted is None or hosted.process is not process:
                return
            if isinstance(report, EngineExited):
                hosted.process = None
                self._shaping.ended(key)
            if not isinstance(report, Progress):
                hit(f"node.hear.{type(report).__name__}")
            self._cause = hosted.causes.of(report)
            self._give(key, EngineSaid(self._shaping.reported(key, _is_dialled(key), report, self._listening)))
            self._cause = ""

        self._events.put_nowait(act)


def _is_dialled(key: Key) -> bool:
    """Whether other machines connect to this role's engine."""
    return key[1] != -1


_KINDS: dict[type, tuple[str, Patience]] = {
    OpenWorker: ("worker", ONE_MINUTE),
    OpenShard: ("shard", ONE_MINUTE),
    OpenStage: ("stage", SERVING),
}
