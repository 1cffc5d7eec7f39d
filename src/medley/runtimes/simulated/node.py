"""A machine of the simulated pool: its roles, their engines, and its stream to the coordinator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from medley.protocol import effects as fx
from medley.protocol import engine as e
from medley.protocol import messages as m
from medley.protocol.events import EngineSaid, NodeEvent, Tick, Told
from medley.protocol.ids import JobId
from medley.roles.shard import Shard
from medley.roles.worker import Worker
from medley.runtimes.simulated.engines import Engine, WorkerEngine
from medley.runtimes.simulated.kernel import MS, S
from medley.runtimes.simulated.setup import Machine
from medley.runtimes.simulated.shard_engine import ShardEngine
from medley.runtimes.simulated.watch import COORDINATOR

if TYPE_CHECKING:
    from medley.runtimes.simulated.stream import Stream
    from medley.runtimes.simulated.world import World

SILENT_NS = 60 * S  # the host ends an engine that shows no progress
SAY_NS = MS  # a pipe between an engine and its host
RETRY_NS = 300 * MS  # between two knocks at a coordinator that does not answer
CORES = 4
TICK = Tick()
Key = tuple[JobId, int]  # shard (-1: worker)


@dataclass(slots=True)
class Clock:
    """A machine's own idea of time: off by `skew_ns`, and fast by `drift` (0.05 is five per cent). What people read
    may be set by people: `wall_skew_ns` is on top.
    """

    skew_ns: int = 0
    drift: float = 0.0
    wall_skew_ns: int = 0

    def read(self, now_ns: int) -> int:
        return now_ns + self.skew_ns + (int(now_ns * self.drift) if self.drift else 0)

    def wall(self, now_ns: int) -> int:
        return self.read(now_ns) + self.wall_skew_ns

    def wait(self, delay_ns: int) -> int:
        """How long a timer of this machine really takes."""
        return int(delay_ns / (1.0 + self.drift)) if self.drift else delay_ns


@dataclass(slots=True, eq=False)
class Hosted:
    """One role and the child below it."""

    role: Worker | Shard
    engine: WorkerEngine | ShardEngine | None = None


class Node:
    def __init__(self, world: World, machine: Machine, heartbeat_ns: int) -> None:
        self.world = world
        self.machine = machine
        self.boot = 0
        self.alive = False
        self.gone = False  # for good: whoever meant to start it later does not
        self.roles: dict[Key, Hosted] = {}
        self.stream: Stream | None = None
        self.lives = 0  # of worker roles, in this boot
        self.clock = Clock()
        self.heartbeat_ns = heartbeat_ns
        self.paused_ns = 0  # until when it stands still
        self.slowness = self.usual_slowness  # the machine's own, times a fault's
        self.beat: m.Heartbeat | None = None  # the newest

    @property
    def usual_slowness(self) -> float:
        """The machine's own, without a fault."""
        return self.machine.slowness * self.machine.conditions.compute_factor

    @property
    def name(self) -> str:
        return self.machine.name

    @property
    def capability(self) -> m.Capability:
        machine = self.machine
        return m.Capability(CORES, machine.device.memory_bytes, machine.device.kind, machine.worker, machine.shard)

    # -- life ---------------------------------------------------------------------------------------------------

    def start(self) -> None:
        if self.alive or self.gone:
            return
        self.alive = True
        self.boot += 1
        self.lives = 0
        self.paused_ns = 0
        self.world.node_is(self.name, "up")
        self.world.kernel.after(self.world.jitter(self.heartbeat_ns), self._tick, self.boot)
        self.connect(self.boot)

    def die(self, state: str = "down") -> None:
        """All its processes end at once, and its connections with them."""
        if not self.alive:
            return
        self.alive = False
        for hosted in self.roles.values():
            self._end(hosted)
        self.roles.clear()
        if self.stream is not None:
            self.stream.cut()
            self.stream = None
        self.world.node_is(self.name, state)

    def leave(self, state: str) -> None:
        """It dies and never starts again, whether it was up, down, or not there yet."""
        self.gone = True
        if self.alive:
            self.die(state)
        else:
            self.world.node_is(self.name, state)

    def pause(self, for_ns: int) -> None:
        """It stands still, as under a debugger or a lid: nothing is handled, nothing is forgotten."""
        self.paused_ns = max(self.paused_ns, self.world.kernel.now + for_ns)

    def connect(self, boot: int) -> None:
        if not self.alive or boot != self.boot or (self.stream is not None and self.stream.open):
            return
        self.stream = self.world.attach(self)
        if self.stream is None:
            self.world.kernel.after(self.world.jitter(RETRY_NS), self.connect, boot)
            return
        shake_ns = 3 * self.world.network.round_trip_ns(self.name, COORDINATOR) // 2  # TCP and TLS
        self.world.kernel.after(shake_ns, self._hello, self.stream)

    def _hello(self, stream: Stream) -> None:
        if self.alive and self.stream is stream and stream.open:
            workers, shards = self._statuses()
            stream.to_coordinator(m.Hello(self.name, str(self.boot), self.capability, workers, shards))

    def stream_ended(self, boot: int) -> None:
        self.world.kernel.after(self.world.jitter(200 * MS), self.connect, boot)

    def _tick(self, boot: int) -> None:
        """Once a heartbeat: roles look at their deadlines, and the coordinator hears how all of them are."""
        if not self.alive or boot != self.boot:
            return
        kernel = self.world.kernel
        if self.paused_ns > kernel.now:
            kernel.after(self.paused_ns - kernel.now, self._tick, boot)
            return
        if self.roles:
            self._tick_roles()
        if self.stream is not None and self.stream.open and self.stream.welcomed:
            self.stream.to_coordinator(self._heartbeat())
        kernel.after(self.clock.wait(self.world.beat_ns(self.heartbeat_ns)), self._tick, boot)

    def _tick_roles(self) -> None:
        now = self.world.kernel.now
        for key, hosted in list(self.roles.items()):
            self._handle(key, TICK)
            engine = hosted.engine
            if isinstance(engine, WorkerEngine) and engine.hung_ns and now - engine.hung_ns > SILENT_NS:
                self.kill_engine(key, "silent", False)

    def _heartbeat(self) -> m.Heartbeat:
        """The same object for as long as there is nothing new to say: it is encoded once."""
        workers, shards = self._statuses()
        beat = self.beat
        if beat is None or beat.workers != workers or beat.shards != shards:
            beat = self.beat = m.Heartbeat(self.name, workers, shards)
        return beat

    def _statuses(self) -> tuple[tuple[m.WorkerStatus, ...], tuple[m.ShardStatus, ...]]:
        if not self.roles:
            return (), ()
        workers: list[m.WorkerStatus] = []
        shards: list[m.ShardStatus] = []
        for hosted in self.roles.values():
            status = hosted.role.status()
            if isinstance(status, m.WorkerStatus):
                workers.append(status)
            else:
                shards.append(status)
        return tuple(workers), tuple(shards)

    # -- what it is told ----------------------------------------------------------------------------------------

    def told(self, message: m.ToNode) -> None:
        if self._standing_still(message):
            return
        match message:
            case m.Welcome():
                self._welcomed(message)
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

    def _standing_still(self, message: m.ToNode) -> bool:
        """Not now: what was said on this stream is read when the machine goes on, if the stream still lives then."""
        now, stream = self.world.kernel.now, self.stream
        if self.paused_ns <= now:
            return False

        def read() -> None:
            if self.alive and self.stream is stream and stream is not None and stream.open:
                self.told(message)

        self.world.kernel.after(self.paused_ns - now, read)
        return True

    def _welcomed(self, message: m.Welcome) -> None:
        assert self.stream is not None
        self.stream.welcomed = True
        self.heartbeat_ns = message.heartbeat_ms * MS
        for key in list(self.roles):
            self._handle(key, Told(message))

    def _assigned(self, key: Key, message: m.AssignWorker | m.AssignShard) -> None:
        if key in self.roles:
            self._handle(key, Told(message))
            return
        role = self._worker(message) if isinstance(message, m.AssignWorker) else Shard(message)
        self.roles[key] = Hosted(role)
        self._begin(key, Told(message), role.start())

    def _worker(self, message: m.AssignWorker) -> Worker:
        """Each has a life of its own: a second one of the same boot must not repeat the update ids of the first."""
        self.lives += 1
        life = str(self.boot) if self.lives == 1 else f"{self.boot}-{self.lives}"
        return Worker(self.name, life, message)

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
            effects = hosted.role.handle(event, self.clock.read(self.world.kernel.now))
            if effects or event is not TICK:
                self._begin(key, event, effects)

    def _begin(self, key: Key, event: NodeEvent, effects: list[fx.Effect]) -> None:
        """Carry the effects out, between being written down and being watched."""
        self.world.handled(self.name, key, event, effects)
        for effect in effects:
            match effect:
                case fx.Report():
                    self._report(effect.message)
                case fx.Run():
                    self._run(key, effect.command)
                case fx.StopEngine(reason):
                    self.kill_engine(key, reason, False)
                case fx.Reject() | fx.Explain():
                    self.world.remark(self.name, effect)
                case _:
                    raise AssertionError(f"a node's role may not want {effect}")
            if not self.alive:
                return
        self.world.watch_handled(self.name, key, event, effects)

    def _report(self, message: m.FromNode) -> None:
        world, armed, kind = self.world, self.world.armed, type(message).__name__
        if armed and world.chance("node crash", f"before report {kind}"):
            world.crash(self)
            return
        if self.stream is not None and self.stream.open:
            self.stream.to_coordinator(message)
        if armed and world.chance("node crash", f"after report {kind}"):
            world.crash(self)

    def _run(self, key: Key, command: e.Command) -> None:
        hosted = self.roles.get(key)
        if hosted is None:
            return
        if isinstance(command, (e.OpenWorker, e.OpenShard)):
            self._end(hosted)
            self._open(key, hosted, command)
        if hosted.engine is not None and hosted.engine.base.alive:
            hosted.engine.run(command)  # type: ignore[arg-type]

    def _open(self, key: Key, hosted: Hosted, command: e.OpenWorker | e.OpenShard) -> None:
        job = self.world.job_named(key[0])
        address = self.world.new_address(self.name, key)
        durations = self.world.durations(self, job, shard=key[1] >= 0)

        def say(report: e.Report) -> None:
            self.world.kernel.after(SAY_NS, self._engine_said, key, base, report)

        base = Engine(self.world, self, job, address, say, durations)
        if isinstance(command, e.OpenWorker):
            hosted.engine = WorkerEngine(base, job.arithmetic.worker(job.plan))
        else:
            arithmetic = job.arithmetic.shard(job.plan, command.blocks)
            hosted.engine = ShardEngine(base, arithmetic, command.shard, tuple(command.blocks))
            self.world.sockets[address.endpoint] = hosted.engine

    def _engine_said(self, key: Key, base: Engine, report: e.Report) -> None:
        hosted = self.roles.get(key)
        if not self.alive or hosted is None or hosted.engine is None or hosted.engine.base is not base:
            return
        if self.paused_ns > self.world.kernel.now:
            self.world.kernel.after(self.paused_ns - self.world.kernel.now, self._engine_said, key, base, report)
            return
        self._handle(key, EngineSaid(report))

    def kill_engine(self, key: Key, reason: str, memory: bool) -> None:
        hosted = self.roles.get(key)
        if hosted is None or hosted.engine is None or not hosted.engine.base.alive:
            return
        base = hosted.engine.base
        self._end(hosted)
        self.world.note(self.name, "engine ended", f"{key[0]}/{key[1]}: {reason}")
        self.world.kernel.after(
            self.world.jitter(50 * MS), self._engine_said, key, base, e.EngineExited(reason, memory)
        )

    def kill_this_engine(self, base: Engine, reason: str, memory: bool) -> None:
        for key, hosted in list(self.roles.items()):
            if hosted.engine is not None and hosted.engine.base is base:
                self.kill_engine(key, reason, memory)

    def _end(self, hosted: Hosted) -> None:
        if hosted.engine is not None and hosted.engine.base.alive:
            base = hosted.engine.base
            base.alive = False
            self.world.sockets.pop(base.address.endpoint, None)
            self.world.network.end_socket(base.address.endpoint)
