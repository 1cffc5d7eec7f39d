"""Hosts the coordinator role in a world: its log, its streams, its vault and its preparers.

Each life is one `CoordinatorHost`. What one event wants persisted is one transaction; only then is anything sent. It
may die before or after any record, and between any two sends; a second one may come up beside it, and then the log's
term ends the older one at its next word.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from medley.protocol import effects as fx
from medley.protocol import engine as e
from medley.protocol import messages as m
from medley.protocol.events import CoordinatorEvent, EngineSaid, Heard, Lost, Tick
from medley.protocol.ids import NodeId
from medley.roles.coordinator import Coordinator
from medley.runtimes.simulated.arithmetic import Blocks
from medley.runtimes.simulated.disk import Fenced, Full
from medley.runtimes.simulated.kernel import MS
from medley.runtimes.simulated.watch import COORDINATOR

if TYPE_CHECKING:
    from medley.runtimes.simulated.stream import Stream
    from medley.runtimes.simulated.world import World

TICK_NS = 200 * MS
DOWN_NS = 1_500 * MS  # until it runs again, on average
TICKS_PER_HEARTBEAT = 10  # where heartbeats are slow, so are deadlines


class Crash(Exception):
    """The coordinator's process ends here."""


@dataclass(slots=True, eq=False)
class Vault:
    """The coordinator's child that keeps checkpoints. What is sealed outlives it; who may connect does not."""

    alive: bool = False
    lives: int = 0
    admitted: frozenset[str] = frozenset()

    def open(self) -> None:
        self.alive = True
        self.lives += 1
        self.admitted = frozenset()


class CoordinatorHost:
    """One life of the coordinator's process."""

    def __init__(self, world: World, term: int, role: Coordinator) -> None:
        self.world = world
        self.term = term
        self.role = role
        self.alive = True
        self.streams: dict[NodeId, Stream] = {}
        self.vault = Vault()
        self.paused_ns = 0

    def start(self) -> None:
        world = self.world
        self.role.restore(world.disk.read())
        world.kernel.after(world.jitter(50 * MS), self._open_vault)
        self._tick()

    def die(self) -> None:
        """The process and its vault are gone; streams break."""
        self.alive = False
        self.vault.alive = False
        streams, self.streams = self.streams, {}
        for stream in streams.values():
            stream.cut()
        for node in self.world.nodes.values():
            if node.stream is not None and node.stream.host is self:
                node.stream.cut()

    def _tick(self) -> None:
        if self.alive:
            world = self.world
            self.handle(Tick(world.clock.wall(world.kernel.now)))
            slow = world.setup.heartbeat_ms * MS // TICKS_PER_HEARTBEAT
            world.kernel.after(max(TICK_NS, slow), self._tick)

    # -- streams ------------------------------------------------------------------------------------------------

    def heard(self, stream: Stream, message: m.FromNode) -> None:
        if not self.alive:
            return
        name = stream.node.name
        old = self.streams.get(name)
        if isinstance(message, m.Hello):
            if old is not None and old is not stream:
                old.cut()
            self.streams[name] = stream
        elif old is not stream:
            return
        self.handle(Heard(name, message))

    def stream_ended(self, stream: Stream) -> None:
        if self.alive and self.streams.get(stream.node.name) is stream:
            del self.streams[stream.node.name]
            self.handle(Lost(stream.node.name, stream.boot))

    # -- events and effects -------------------------------------------------------------------------------------

    def handle(self, event: CoordinatorEvent) -> None:
        """One event: its records in one write, then everything else, in order."""
        if not self.alive:
            return
        world = self.world
        if self.paused_ns > world.kernel.now:
            world.kernel.after(self.paused_ns - world.kernel.now, self.handle, event)
            return
        effects = self.role.handle(event, world.clock.read(world.kernel.now))
        if not effects and isinstance(event, Tick):
            return
        world.handled(COORDINATOR, None, event, effects)
        try:
            self._carry_out(effects)
        except (Crash, Fenced, Full) as problem:
            world.coordinator_died(self, str(problem) or "a crash")
            return
        if not world.watchers:
            return
        # Who was replaced and does not know it is not the one whom the log believes.
        who = COORDINATOR if world.host is self else f"{COORDINATOR} of term {self.term}"
        world.watch_handled(who, None, event, effects)

    def _carry_out(self, effects: Sequence[fx.Effect]) -> None:
        if effects:
            self._persist([x for x in effects if isinstance(x, (fx.Persist, fx.Compact))])
            for effect in effects:
                self._execute(effect)

    def _persist(self, records: Sequence[fx.Persist | fx.Compact]) -> None:
        """What production writes: runs of records in one transaction, a compaction by itself."""
        waiting: list[fx.Persist] = []
        for record in records:
            if isinstance(record, fx.Persist):
                waiting.append(record)
                continue
            self._append(waiting)
            waiting = []
            self._crash(f"before compact {type(record.record).__name__}")
            body = self.world.disk.compact(self.term, record)
            self.world.persisted(record.stream, record.record, body)
            self._crash(f"after compact {type(record.record).__name__}")
        self._append(waiting)

    def _append(self, records: Sequence[fx.Persist]) -> None:
        if not records:
            return
        world = self.world
        kinds = [type(r.record).__name__ for r in records]
        for kind in kinds:
            self._crash(f"before persist {kind}")
        if world.armed and any(world.chance("torn write", kind) for kind in kinds):
            raise Crash("the power failed during a write")
        bodies = world.disk.append(self.term, records)
        for record, body in zip(records, bodies, strict=True):
            world.persisted(record.stream, record.record, body)
        for kind in kinds:
            self._crash(f"after persist {kind}")

    def _crash(self, operation: str) -> None:
        if self.world.armed and self.world.chance("crash", operation):
            raise Crash(f"a crash {operation}")

    def _execute(self, effect: fx.Effect) -> None:
        match effect:
            case fx.Persist() | fx.Compact():
                pass
            case fx.Send():
                self._send(effect.node, effect.message)
            case fx.Close(node):
                if (line := self.streams.get(node)) is not None:
                    line.cut()
            case fx.Run(command):
                self._run(command)
            case fx.Explain() | fx.Reject():
                self.world.remark(COORDINATOR, effect)
            case _:
                raise AssertionError(f"the coordinator may not want {effect}")

    def _send(self, node: NodeId, message: m.ToNode) -> None:
        armed, kind = self.world.armed, type(message).__name__
        if armed:
            self._crash(f"before send {kind}")
        if (line := self.streams.get(node)) is not None:
            self.world.sent(message)
            line.to_node(message)
        if armed:
            self._crash(f"after send {kind}")

    # -- its children -------------------------------------------------------------------------------------------

    def kill_vault(self) -> None:
        if self.vault.alive:
            self.vault.alive = False
            after, jitter = self.world.kernel.after, self.world.jitter
            after(jitter(20 * MS), self.handle, EngineSaid(e.EngineExited("killed", False)))
            after(jitter(600 * MS), self._open_vault)

    def _open_vault(self) -> None:
        if self.alive and not self.vault.alive:
            self.vault.open()
            self.handle(EngineSaid(e.Opened(self.world.new_address(COORDINATOR, ("vault", -1)))))

    def _run(self, command: e.Command) -> None:
        after, jitter, lives = self.world.kernel.after, self.world.jitter, self.vault.lives
        match command:
            case e.SetPeers():
                after(2 * MS, self._set_peers, command, lives)
            case e.PrepareJob():
                after(jitter(300 * MS), self._prepared, command)
            case e.SealCheckpoint():
                after(jitter(50 * MS), self._seal, command, lives)
            case e.ExportJob():
                after(jitter(200 * MS), self._export, command)
            case _:
                raise AssertionError(f"the coordinator's children do not know {command}")

    def _set_peers(self, command: e.SetPeers, vault_life: int) -> None:
        if self.vault.alive and vault_life == self.vault.lives:
            self.vault.admitted = frozenset(command.keys)
            self.handle(EngineSaid(e.PeersKnown(command.number)))

    def _prepared(self, command: e.PrepareJob) -> None:
        if not self.alive:
            return
        if self.world.chance("prepare fails", "prepare"):
            self.handle(EngineSaid(e.Failed("prepare", command.job, "killed", False, False)))
            return
        job = self.world.job_named(command.job)
        kept = self.world.kept(command.job)
        kept.sealed.setdefault(0, job.arithmetic.initial())
        self.handle(EngineSaid(e.JobPrepared(command.job, job.plan_text)))

    def _seal(self, command: e.SealCheckpoint, vault_life: int) -> None:
        if not self.vault.alive or vault_life != self.vault.lives:
            return
        if self.world.chance("seal fails", "seal"):
            self.handle(EngineSaid(e.Failed("seal", command.job, "the disk is full", False, False)))
            return
        kept = self.world.kept(command.job)
        blocks: Blocks = {}
        for part in command.parts:
            blocks.update(kept.parts[part.file])
        kept.sealed[command.version] = blocks
        kept.damaged.discard(command.version)
        self.world.watch_sealed(command, blocks)
        for version in [v for v in kept.sealed if v not in command.keep]:
            del kept.sealed[version]
        done = {p.file for p in command.parts}
        kept.parts = {
            name: p for name, p in kept.parts.items() if name not in done and _version(name) > min(kept.sealed)
        }
        nbytes = sum(p.nbytes for p in command.parts)
        self.handle(EngineSaid(e.Sealed(command.job, command.generation, command.version, "d", nbytes)))

    def _export(self, command: e.ExportJob) -> None:
        if not self.alive:
            return
        if self.world.chance("export fails", "export"):
            self.handle(EngineSaid(e.Failed("export", command.job, "killed", False, False)))
            return
        kept = self.world.kept(command.job)
        blocks = kept.sealed[command.version]
        kept.exports.append((command.version, blocks))
        self.world.watch_exported(command.job, command.version, blocks)
        self.handle(EngineSaid(e.Exported(command.job, command.version, "out")))


def _version(file: str) -> int:
    return int(file.split("-")[1])
