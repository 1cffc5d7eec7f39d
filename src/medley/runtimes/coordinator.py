"""Hosts the coordinator role: its log, its streams, its vault, its preparers. The one writer of the pool's truth.

Promises: records are on disk before anything they caused is sent (one write for all events that waited together);
a newer term ends this process; whatever the role explains can be read by people. Leaves to others: what to decide
(roles), what an operator may ask (`operator`), what the page shows (`dashboard`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import assert_never

from medley.concurrency import TaskGroup
from medley.observe.failpoints import hit
from medley.observe.logs import logger
from medley.observe.metrics import Metrics
from medley.protocol import effects as fx
from medley.protocol.codec import Codec
from medley.protocol.doors import JoinReply, JoinRequest
from medley.protocol.engine import (
    EngineExited,
    ExportJob,
    Failed,
    Opened,
    OpenVault,
    PrepareJob,
    Progress,
    SealCheckpoint,
    SetPeers,
)
from medley.protocol.engine import Report as EngineReport
from medley.protocol.errors import PeerError, UserError
from medley.protocol.events import CoordinatorEvent, EngineSaid, Expel, Heard, Lost, Stop, Tick
from medley.protocol.ids import NS_PER_S, NodeId
from medley.protocol.messages import Address, EngineUp, ToNode
from medley.protocol.records import PoolRecord, Record
from medley.protocol.wire import Envelope
from medley.roles.allotment import PoolOptions
from medley.roles.coordinator import Coordinator
from medley.runtimes.addresses import address_of, advertised, check_address, is_everywhere, is_loopback, split
from medley.runtimes.announce import announce
from medley.runtimes.causes import Causes
from medley.runtimes.children.environment import PORTS
from medley.runtimes.chronicle import Chronicle
from medley.runtimes.clock import SystemClock
from medley.runtimes.door import Door
from medley.runtimes.leftovers import sweep
from medley.runtimes.process import EngineProcess
from medley.runtimes.switchboard import Switchboard
from medley.store.eventlog import Entry, EventLog
from medley.transports.control.contract import Limits
from medley.transports.control.server import ControlServer
from medley.transports.identity import Authority, peer_identity
from medley.transports.tunnel.relay import Relay

RECORDS = Codec(Record)
POOL = "pool"
TICK_S = 0.1
EVENTS_MAX = 65_536  # that wait to be handled; far above what a fleet says in a second
STOP_S = 60.0
PREPARERS_MAX = 2  # processes that prepare or export at once; each reads a whole model


@dataclass(frozen=True, slots=True)
class CoordinatorOptions:
    """`url` is the event log's database; empty means SQLite in `directory`."""

    directory: Path
    host: str = "127.0.0.1"
    control_port: int = 0
    door_port: int = 0
    http_port: int = 0
    advertised: tuple[str, ...] = ()  # host names or addresses in the certificate, besides loopback
    encrypt: bool = True
    announce: bool = False
    url: str = ""
    tensor_ports: str = ""
    scheduler: str = "fifo"
    quotas: dict[str, int] = field(default_factory=dict)  # machines of each queue of jobs at once


class CoordinatorHost:
    """Runs one coordinator until it is stopped or fenced."""

    def __init__(self, options: CoordinatorOptions) -> None:
        self.options = options
        self.clock = SystemClock()
        self.metrics = Metrics()
        self.log = logger("coordinator")
        options.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        sweep(options.directory, "medley-prepare-*", "medley-export-*")
        self.names = advertised(options.host, options.advertised)
        self.authority = Authority.open(options.directory, self.clock.wall_ns())
        self._store = EventLog.open(options.url or f"sqlite:///{options.directory / 'events.db'}")
        self.term = self._store.acquire_term(f"coordinator@{options.host}")
        stored = [(s.stream, RECORDS.from_json(s.kind, s.body)) for s in self._store.read()]
        self.role = Coordinator(self.term, PoolOptions(options.scheduler, options.quotas))
        self.role.restore(stored)
        pool: list[PoolRecord] = [r for name, r in stored if name == POOL]
        self.door = Door(self.authority, pool)
        self.chronicle = Chronicle(options.directory, self.metrics)
        self.began_ns = self.clock.now_ns()
        self._events: asyncio.Queue[tuple[CoordinatorEvent, str]] = asyncio.Queue()
        self._posted = 0
        self._causes = Causes()
        self._vault: EngineProcess | None = None
        self._tasks: asyncio.TaskGroup | None = None
        self._preparers = asyncio.Semaphore(PREPARERS_MAX)
        self._stopped = asyncio.Event()
        self._executed = asyncio.Event()
        self._deciding = asyncio.Lock()  # a token is redeemed once: looked up, kept and folded by one request at a time
        self.server: ControlServer | None = None
        self.relay = Relay(Switchboard(self.role, options.host, self._say, self._explain))

    # -- life -------------------------------------------------------------------------------------------------

    async def run(self, handler: object, ready: Callable[[], None]) -> None:
        """Serve until `stop` has saved everything. `handler` answers the control plane (see `operator`)."""
        options = self.options
        if not options.encrypt and not is_loopback(options.host):
            raise UserError(f"{options.host} reaches other machines, so encryption must stay on")
        identity = self.authority.serve("coordinator", self.names, self.clock.wall_ns())
        self.server = await ControlServer.open(
            host=options.host,
            control_port=options.control_port,
            door_port=options.door_port,
            identity=identity,
            handler=handler,  # type: ignore[arg-type]
            limits=Limits(),
            beside=self.relay.methods(),
        )
        try:
            async with TaskGroup() as tasks:
                self._tasks = tasks
                background = [
                    tasks.create_task(self._keep_vault()),
                    tasks.create_task(self._tick()),
                    tasks.create_task(self._consume()),
                ]
                if options.announce:
                    background.append(tasks.create_task(self._announce()))
                ready()
                await self._stopped.wait()
                for task in background:
                    task.cancel()
        finally:
            self.relay.close()
            await self.server.close()
            self._store.close()

    async def _announce(self) -> None:
        assert self.server is not None
        control, door = split(self.server.control_address)[1], split(self.server.door_address)[1]
        await announce(self.authority.fingerprint, self.names, control, door)

    def stop(self) -> None:
        """Save what is running, then end `run`."""
        self.post(Stop())

    def post(self, event: CoordinatorEvent, cause: str = "") -> None:
        """Give the role an event. `cause` follows whatever comes of it, through the logs of every machine."""
        self._posted += 1
        self._events.put_nowait((event, cause or f"coordinator.{self.term}.{self._posted}"))

    async def settled(self) -> None:
        """Wait until one more batch of events has taken effect."""
        await self._executed.wait()

    def revoke(self, node: NodeId, reason: str) -> None:
        """From now on this node is refused; its stream ends at once."""
        self.role.revoked[node] = reason
        if self.server is not None:
            self.server.disconnect(node, f"{node} was revoked: {reason}")
        self.relay.expel(node, f"{node} was revoked: {reason}")
        self.post(Expel(node, reason))

    def _say(self, node: NodeId, message: ToNode) -> bool:
        return self.server is not None and self.server.send(node, message, term=self.term)

    def _explain(self, subject: str, text: str) -> None:
        self.chronicle.explain(subject, text, self.clock.wall_ns())

    async def _tick(self) -> None:
        deadline_ns = 0
        while True:
            await self.clock.sleep(TICK_S)
            self.post(Tick(self.clock.wall_ns()))
            if not self.role.stopping:
                continue
            deadline_ns = deadline_ns or self.clock.now_ns() + int(STOP_S * NS_PER_S)
            if not self.role.unsaved() or self.clock.now_ns() > deadline_ns:
                self._stopped.set()

    # -- events and effects -----------------------------------------------------------------------------------

    async def _consume(self) -> None:
        """All events that are waiting make one batch: one write, then everything that follows from it."""
        while True:
            batch = [await self._events.get()]
            while not self._events.empty() and len(batch) < 256:
                batch.append(self._events.get_nowait())
            effects: list[tuple[fx.Effect, str]] = []
            for event, cause in batch:
                effects += [(e, cause) for e in self.role.handle(event, self.clock.now_ns())]
            await self._execute(effects)
            done, self._executed = self._executed, asyncio.Event()
            done.set()

    async def _execute(self, effects: Sequence[tuple[fx.Effect, str]]) -> None:
        await self._persist([e for e, _ in effects if isinstance(e, fx.Persist | fx.Compact)])
        for effect, cause in effects:
            match effect:
                case fx.Persist(stream, record):
                    self.chronicle.note(stream, record, self.clock.wall_ns())
                case fx.Send(node, message):
                    kind = type(message).__name__
                    hit(f"coordinator.send.before.{kind}")
                    assert self.server is not None
                    self.server.send(node, message, cause, self.term)
                    hit(f"coordinator.send.after.{kind}")
                case fx.Run(command):
                    self._causes.given(command, cause)
                    self._run(command)
                case fx.Explain(subject, text):
                    self.chronicle.explain(subject, text, self.clock.wall_ns(), cause)
                case fx.Close(node, reason):
                    assert self.server is not None
                    self.server.disconnect(node, reason)
                case fx.Reject(peer, reason):
                    self.log.warning("refused", peer=peer, reason=reason)
                case fx.Compact():
                    pass
                case fx.Report() | fx.StopEngine():
                    raise AssertionError(f"the coordinator cannot {effect}")
                case _:
                    assert_never(effect)

    async def _persist(self, records: Sequence[fx.Persist | fx.Compact]) -> None:
        """Group commit. A compaction stands for everything before it in its stream."""
        if not records:
            return
        began_ns = self.clock.now_ns()
        kinds = sorted({type(r.record).__name__ for r in records})
        for kind in kinds:
            hit(f"coordinator.persist.before.{kind}")
        await asyncio.to_thread(self._write, records)
        for kind in kinds:
            hit(f"coordinator.persist.after.{kind}")
        self.metrics.persist_seconds.observe((self.clock.now_ns() - began_ns) / NS_PER_S)

    def _write(self, records: Sequence[fx.Persist | fx.Compact]) -> None:
        waiting: list[Entry] = []
        for record in records:
            entry = Entry(record.stream, *RECORDS.to_json(record.record))
            if isinstance(record, fx.Persist):
                waiting.append(entry)
                continue
            if waiting:
                self._store.append(waiting)
                waiting = []
            self._store.compact(record.stream, self._store.last_seq(), entry)
        if waiting:
            self._store.append(waiting)

    # -- the coordinator's own children -----------------------------------------------------------------------

    async def _keep_vault(self) -> None:
        """The vault is restarted for ever; its key and port stay the same."""
        root = str(self.options.directory)
        while True:
            self._vault = EngineProcess("vault", self._vault_said, {PORTS: self.options.tensor_ports})
            self._vault.say(OpenVault(root, self.options.host, 0, self.options.encrypt))
            await self._vault.run()
            await self.clock.sleep(TICK_S)

    def _vault_said(self, report: EngineReport) -> None:
        if isinstance(report, Progress):
            return
        if isinstance(report, Opened):
            report = Opened(self._dialled(report.address))
        self.post(EngineSaid(report), self._causes.of(report))

    def _dialled(self, address: Address) -> Address:
        """A socket that listens everywhere is announced under an address that peers can dial."""
        host, port = split(address.endpoint)
        if not is_everywhere(host):
            return address
        return Address(f"tcp://{address_of(self.names[0], port)}", address.key)

    def _run(self, command: object) -> None:
        assert self._tasks is not None
        root = str(self.options.directory)
        match command:
            case SetPeers() | SealCheckpoint():
                if self._vault is not None:
                    self._vault.say(command)
            case PrepareJob() | ExportJob():
                self._tasks.create_task(self._once(replace(command, root=root)))
            case _:
                raise AssertionError(f"not a command of the coordinator: {command}")

    async def _once(self, command: PrepareJob | ExportJob) -> None:
        """A process of its own for one heavy piece of work; whatever becomes of it is one report."""
        what = "prepare" if isinstance(command, PrepareJob) else "export"
        said: list[EngineReport] = []

        def heard(report: EngineReport) -> None:
            if not isinstance(report, Progress):
                said.append(report)
                process.kill()

        async with self._preparers:
            process = EngineProcess("preparer", heard)
            process.say(command)
            await process.run()
        report = said[0]
        if isinstance(report, EngineExited):
            reason = f"the process that should {what} the job ended: {report.reason}"
            report = Failed(what, command.job, reason, report.memory, False)
        self.post(EngineSaid(report), self._causes.of(report))

    # -- the control plane speaks -----------------------------------------------------------------------------

    def connected(self, node: NodeId, boot: str) -> None:
        if node in self.role.revoked:
            raise PeerError(f"{node} was revoked: {self.role.revoked[node]}")
        self.log.info("node connected", node=node, boot=boot)

    def heard(self, node: NodeId, envelope: Envelope) -> None:
        """A PeerError ends the stream. What other machines will be told to dial is checked here."""
        if self._events.qsize() >= EVENTS_MAX:
            raise PeerError("the coordinator has too much to read; connect again")
        if isinstance(envelope.message, EngineUp):
            check_address(envelope.message.address, self.options.encrypt)
        self.post(Heard(node, envelope.message), envelope.cause)

    def lost(self, node: NodeId, boot: str) -> None:
        self.log.info("node lost", node=node, boot=boot)
        self.post(Lost(node, boot))

    async def join(self, request: JoinRequest) -> JoinReply:
        """Redeem a token: the record is durable before the certificate leaves."""
        assert self.server is not None
        async with self._deciding:
            reply, record = self.door.redeem(request, self.server.control_address, self.clock.wall_ns())
            if record is not None:
                await self._believe(record)
        if reply.refused:
            self.log.warning("join refused", node=request.node, reason=reply.refused)
        return reply

    async def renew(self, request: JoinRequest, certificate: bytes) -> JoinReply:
        """A new certificate for the node that the connection's certificate names, unless it was revoked."""
        name = peer_identity(certificate).name
        if name in self.role.revoked:
            raise PeerError(f"{name} was revoked: {self.role.revoked[name]}")
        renewed = self.authority.renew(request.csr_pem, certificate, self.clock.wall_ns())
        self.log.info("certificate renewed", node=name)
        return JoinReply(renewed, self.authority.certificate_pem, name, "", "")

    async def keep(self, record: PoolRecord) -> None:
        """Persist one of the pool's own facts, then believe it."""
        async with self._deciding:
            await self._believe(record)

    async def _believe(self, record: PoolRecord) -> None:
        await self._persist([fx.Persist(POOL, record)])
        self.door.fold(record)
