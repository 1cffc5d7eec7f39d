"""A machine of the simulated pool: its roles, their engines, and its stream to the coordinator."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from medley.protocol import effects as fx
from medley.protocol import engine as e
from medley.protocol import messages as m
from medley.protocol.events import EngineSaid, NodeEvent, Tick, Told
from medley.roles.shard import Shard
from medley.roles.worker import Worker
from medley.runtimes.simulated.engines import ShardEngine, WorkerEngine
from medley.runtimes.simulated.kernel import MS, S

if TYPE_CHECKING:
    from medley.runtimes.simulated.world import Stream, World

Engine = WorkerEngine | ShardEngine
SILENT_NS = 60 * S  # the host ends an engine that shows no progress
Key = tuple[str, int]  # job, shard (-1: worker)


@dataclass(slots=True)
class Hosted:
    """One role and the child below it."""

    role: Worker | Shard
    engine: Engine | None = None


@dataclass(slots=True)
class Node:
    world: World
    name: str
    capability: m.Capability
    boot: int = 0
    alive: bool = False
    roles: dict[Key, Hosted] = field(default_factory=dict)
    stream: Stream | None = None

    # -- life ---------------------------------------------------------------------------------------------------

    def start(self) -> None:
        if self.alive:
            return
        self.alive = True
        self.boot += 1
        self.world.kernel.after(self.world.jitter(100 * MS), self._tick, self.boot)
        self.connect(self.boot)

    def die(self) -> None:
        if not self.alive:
            return
        self.alive = False
        for hosted in self.roles.values():
            self._end(hosted)
        self.roles.clear()
        if self.stream is not None:
            self.stream.cut()
            self.stream = None

    def connect(self, boot: int) -> None:
        if not self.alive or boot != self.boot or (self.stream is not None and self.stream.open):
            return
        self.stream = self.world.attach(self)
        if self.stream is None:
            self.world.kernel.after(self.world.jitter(300 * MS), self.connect, boot)
            return
        workers, shards = self._statuses()
        self.stream.to_coordinator(m.Hello(self.name, str(self.boot), self.capability, workers, shards))

    def stream_ended(self, boot: int) -> None:
        self.world.kernel.after(self.world.jitter(200 * MS), self.connect, boot)

    def _tick(self, boot: int) -> None:
        if not self.alive or boot != self.boot:
            return
        for key in list(self.roles):
            self._handle(key, Tick())
        for key, hosted in list(self.roles.items()):
            engine = hosted.engine
            if (
                isinstance(engine, WorkerEngine)
                and engine.hung_ns
                and self.world.kernel.now - engine.hung_ns > SILENT_NS
            ):
                self.kill_engine(key, "silent", False)
        if self.stream is not None and self.stream.open and self.stream.welcomed:
            self.stream.to_coordinator(m.Heartbeat(self.name, *self._statuses()))
        self.world.kernel.after(self.world.jitter(800 * MS), self._tick, boot)

    def _statuses(self) -> tuple[tuple[m.WorkerStatus, ...], tuple[m.ShardStatus, ...]]:
        statuses = [h.role.status() for h in self.roles.values()]
        return (
            tuple(s for s in statuses if isinstance(s, m.WorkerStatus)),
            tuple(s for s in statuses if isinstance(s, m.ShardStatus)),
        )

    # -- what it is told ----------------------------------------------------------------------------------------

    def told(self, message: m.ToNode) -> None:
        match message:
            case m.Welcome():
                assert self.stream is not None
                self.stream.welcomed = True
                for key in list(self.roles):
                    self._handle(key, Told(message))
            case m.Refused() | m.Called():  # links of a world all work: nobody calls by relay
                pass
            case m.AssignWorker():
                self._assigned((message.job, -1), message)
            case m.AssignShard():
                self._assigned((message.job, message.shard), message)
            case m.Leave():
                self._leave((message.job, message.shard), message)
            case _:
                self._handle((message.job, getattr(message, "shard", -1)), Told(message))

    def _assigned(self, key: Key, message: m.AssignWorker | m.AssignShard) -> None:
        if key in self.roles:
            self._handle(key, Told(message))
            return
        role = Worker(self.name, str(self.boot), message) if isinstance(message, m.AssignWorker) else Shard(message)
        self.roles[key] = Hosted(role)
        self._execute(key, role.start())

    def _leave(self, key: Key, message: m.Leave) -> None:
        hosted = self.roles.get(key)
        if hosted is None or hosted.role.generation != message.generation:
            return
        self._handle(key, Told(message))
        self._end(hosted)
        del self.roles[key]

    # -- roles and engines --------------------------------------------------------------------------------------

    def _handle(self, key: Key, event: NodeEvent) -> None:
        hosted = self.roles.get(key)
        if hosted is not None:
            effects = hosted.role.handle(event, self.world.kernel.now)
            self.world.trace(self.name, key, event, effects)
            self._execute(key, effects)

    def _execute(self, key: Key, effects: list[fx.Effect]) -> None:
        for effect in effects:
            match effect:
                case fx.Report(message):
                    if self.stream is not None and self.stream.open:
                        self.stream.to_coordinator(message)
                case fx.Run(command):
                    self._run(key, command)
                case fx.StopEngine(reason):
                    self.kill_engine(key, reason, False)
                case fx.Reject() | fx.Explain():
                    self.world.remarks.append((self.name, effect))
                case _:
                    raise AssertionError(f"a node's role may not want {effect}")

    def _run(self, key: Key, command: e.Command) -> None:
        hosted = self.roles[key]
        if isinstance(command, e.OpenWorker | e.OpenShard):
            self._end(hosted)
            address = self.world.new_address(f"{self.name}/{key[1]}")

            def say(report: e.Report) -> None:
                self.world.kernel.after(MS, self._engine_said, key, engine, report)

            engine: Engine = (
                WorkerEngine(self.world, address, say) if key[1] < 0 else ShardEngine(self.world, address, say)
            )
            hosted.engine = engine
            if isinstance(engine, ShardEngine):
                self.world.sockets[address.endpoint] = engine
        if hosted.engine is not None and hosted.engine.alive:
            hosted.engine.run(command)  # type: ignore[arg-type]

    def _engine_said(self, key: Key, engine: Engine, report: e.Report) -> None:
        hosted = self.roles.get(key)
        if self.alive and hosted is not None and hosted.engine is engine:
            self._handle(key, EngineSaid(report))

    def kill_engine(self, key: Key, reason: str, memory: bool) -> None:
        hosted = self.roles.get(key)
        if hosted is None or hosted.engine is None or not hosted.engine.alive:
            return
        self._end(hosted)
        delay = self.world.jitter(50 * MS)
        self.world.kernel.after(delay, self._engine_said, key, hosted.engine, e.EngineExited(reason, memory))

    def _end(self, hosted: Hosted) -> None:
        if hosted.engine is not None:
            hosted.engine.alive = False
            self.world.sockets.pop(hosted.engine.address.endpoint, None)
