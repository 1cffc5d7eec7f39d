"""A coordinator, its log and its vault, nodes, and the links between them: everything but the roles is a model.

A stream delivers in order and loses nothing while it lives; when it breaks, what was under way is lost in both
directions, and each side notices in its own time. The coordinator may die between any two effects.
"""

from __future__ import annotations

from collections import defaultdict, deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from medley.protocol import effects as fx
from medley.protocol import engine as e
from medley.protocol import messages as m
from medley.protocol import wire
from medley.protocol.codec import Codec, parse, text
from medley.protocol.events import Cancel, CoordinatorEvent, EngineSaid, Heard, Lost, Resume, Submit, Tick
from medley.protocol.layout import TensorSpec
from medley.protocol.plan import Plan
from medley.protocol.records import Record
from medley.protocol.spec import JobSpec
from medley.roles import ledger
from medley.roles.coordinator import Coordinator
from medley.roles.run import Run
from medley.runtimes.simulated.engines import ShardEngine, Vault, WorkerEngine
from medley.runtimes.simulated.kernel import MS, Kernel, S
from medley.runtimes.simulated.nodes import Node
from medley.runtimes.simulated.proof import START, Proof, Vector, in_order

JOB = "j"
LOG = Codec(Record)


class Crash(Exception):
    """The coordinator's process ends here."""


@dataclass(slots=True)
class Stream:
    """One connection of one node."""

    world: World
    node: Node
    boot: str
    life: int  # of the coordinator
    open: bool = True  # as the node sees it
    heard: bool = False
    welcomed: bool = False
    broken: bool = False
    last: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    def to_coordinator(self, message: m.FromNode) -> None:
        self._carry("up", self.world.heard, message)

    def to_node(self, message: m.ToNode) -> None:
        self._carry("down", self._told, message)

    def _told(self, stream: Stream, message: m.ToNode) -> None:
        if self.node.alive and self.node.stream is self and self.open:
            self.node.told(message)

    def _carry(self, way: str, deliver: Any, message: m.Message) -> None:
        kernel = self.world.kernel
        data = wire.encode(message)
        at = max(kernel.now + self.world.jitter(self.world.latency_ns), self.last[way] + 1)
        self.last[way] = at

        def arrive() -> None:
            if not self.broken:
                deliver(self, wire.decode(data).message)

        kernel.after(at - kernel.now, arrive)

    def cut(self) -> None:
        """The link is gone; both sides find out later."""
        if self.broken:
            return
        self.broken = True
        self.world.kernel.after(self.world.jitter(200 * MS), self._node_notices)
        self.world.kernel.after(self.world.jitter(400 * MS), self.world.stream_ended, self)

    def _node_notices(self) -> None:
        if self.open:
            self.open = False
            self.node.stream_ended(int(self.boot))


class World:
    """One job on one pool, from a seed."""

    def __init__(self, seed: int, spec: JobSpec, samples: int, *, heldout: int = 1) -> None:
        self.kernel = Kernel(seed)
        self.random = self.kernel.random
        self.spec, self.samples, self.heldout = spec, samples, heldout
        self.latency_ns = 10 * MS
        self.chances: dict[str, float] = {}
        self.happened: dict[str, int] = defaultdict(int)
        self.log: list[tuple[str, str, bytes]] = []
        self.proof = Proof()
        self.vault = Vault(self)
        self.vault_address = m.Address("", "")
        self.nodes: dict[str, Node] = {}
        self.sockets: dict[str, ShardEngine] = {}
        self.streams: dict[str, Stream] = {}
        self.coordinator: Coordinator | None = None
        self.life = 0
        self.remarks: list[tuple[str, fx.Effect]] = []
        self.recent: deque[str] = deque(maxlen=400)
        self.tracing = False
        self._addresses = 0
        self._events = 0

    # -- chance -------------------------------------------------------------------------------------------------

    def jitter(self, mean_ns: int) -> int:
        return int(mean_ns * (0.5 + self.random.random()))

    def chance(self, what: str) -> bool:
        if self.random.random() < self.chances.get(what, 0.0):
            self.happened[what] += 1
            return True
        return False

    def new_address(self, name: str) -> m.Address:
        self._addresses += 1
        return m.Address(f"sim://{name}#{self._addresses}", f"key{self._addresses}")

    # -- nodes and links ------------------------------------------------------------------------------------------

    def add_node(self, name: str, *, worker: bool = True, shard: bool = True) -> Node:
        node = Node(self, name, m.Capability(4, 2**33, "sim", worker, shard))
        self.nodes[name] = node
        return node

    def attach(self, node: Node) -> Stream | None:
        if self.coordinator is None:
            return None
        return Stream(self, node, str(node.boot), self.life)

    def heard(self, stream: Stream, message: m.FromNode) -> None:
        if self.coordinator is None or stream.life != self.life:
            return
        old = self.streams.get(stream.node.name)
        if isinstance(message, m.Hello):
            if old is not None and old is not stream:
                old.cut()
            self.streams[stream.node.name] = stream
        elif old is not stream:
            return
        self.handle(Heard(stream.node.name, message))

    def stream_ended(self, stream: Stream) -> None:
        if stream.life == self.life and self.streams.get(stream.node.name) is stream:
            del self.streams[stream.node.name]
            self.handle(Lost(stream.node.name, stream.boot))

    # -- the coordinator's process --------------------------------------------------------------------------------

    def start_coordinator(self) -> None:
        if self.coordinator is not None:
            return
        self.life += 1
        self.coordinator = Coordinator(self.life)
        self.coordinator.restore(self._records())
        self.kernel.after(self.jitter(50 * MS), self._open_vault, self.life)
        self._tick(self.life)

    def kill_coordinator(self) -> None:
        if self.coordinator is None:
            return
        self.happened["coordinator died"] += 1
        self.coordinator = None
        self.vault.alive = False
        self.streams.clear()
        for node in self.nodes.values():
            if node.stream is not None:
                node.stream.cut()
        self.kernel.after(self.jitter(1500 * MS), self.start_coordinator)

    def kill_vault(self) -> None:
        if self.vault.alive:
            self.vault.alive = False
            self.kernel.after(
                self.jitter(20 * MS), self._if_life, self.life, EngineSaid(e.EngineExited("killed", False))
            )
            self.kernel.after(self.jitter(600 * MS), self._open_vault, self.life)

    def _open_vault(self, life: int) -> None:
        if life == self.life and self.coordinator is not None and not self.vault.alive:
            self.vault.open()
            self.vault_address = self.new_address("vault")
            self.handle(EngineSaid(e.Opened(self.vault_address)))

    def _tick(self, life: int) -> None:
        if life == self.life and self.coordinator is not None:
            self.handle(Tick(self.kernel.now))
            self.kernel.after(200 * MS, self._tick, life)

    def _if_life(self, life: int, event: CoordinatorEvent) -> None:
        if life == self.life:
            self.handle(event)

    def _records(self) -> list[tuple[str, Any]]:
        return [(stream, LOG.from_json(name, body)) for stream, name, body in self.log]

    def handle(self, event: CoordinatorEvent) -> None:
        """One event of the coordinator, its effects in order, then every invariant."""
        if self.coordinator is None:
            return
        effects = self.coordinator.handle(event, self.kernel.now)
        self.trace("coordinator", None, event, effects)
        try:
            for effect in effects:
                self._execute(effect)
        except Crash:
            self.kill_coordinator()
            return
        self._check_coordinator()

    def _execute(self, effect: fx.Effect) -> None:
        if self.chance("crash"):
            raise Crash
        match effect:
            case fx.Persist(stream, record):
                self.log.append((stream, *LOG.to_json(record)))
                self.proof.follow(LOG.from_json(*self.log[-1][1:]))
            case fx.Compact(stream, record):
                self.log = [entry for entry in self.log if entry[0] != stream]
                self.log.append((stream, *LOG.to_json(record)))
            case fx.Send(node, message):
                if (line := self.streams.get(node)) is not None:
                    line.to_node(message)
            case fx.Close(node):
                if (line := self.streams.get(node)) is not None:
                    line.cut()
            case fx.Run(command):
                self._run(command)
            case fx.Explain() | fx.Reject():
                self.remarks.append(("coordinator", effect))
            case _:
                raise AssertionError(f"the coordinator may not want {effect}")

    def _run(self, command: e.Command) -> None:
        life = self.life
        match command:
            case e.SetPeers():
                self.kernel.after(2 * MS, self._set_peers, command, self.vault.lives)
            case e.PrepareJob():
                self.kernel.after(self.jitter(300 * MS), self._prepared, life, command)
            case e.SealCheckpoint():
                self.kernel.after(self.jitter(50 * MS), self._seal, command, self.vault.lives)
            case e.ExportJob():
                self.kernel.after(self.jitter(200 * MS), self._export, life, command)
            case _:
                raise AssertionError(f"the coordinator's children do not know {command}")

    def _set_peers(self, command: e.SetPeers, vault_life: int) -> None:
        if self.vault.alive and vault_life == self.vault.lives:
            self.vault.admitted = frozenset(command.keys)
            self.handle(EngineSaid(e.PeersKnown(command.number)))

    def _prepared(self, life: int, command: e.PrepareJob) -> None:
        if life != self.life or self.coordinator is None:
            return
        spec = parse(command.spec, JobSpec)
        tensors = tuple(TensorSpec(f"t{i}", (min(8, self.samples - i),), "") for i in range(0, self.samples, 8))
        if self.chance("prepare fails"):
            self.handle(EngineSaid(e.Failed("prepare", command.job, "killed", False, False)))
            return
        plan = Plan(spec, self.samples, self.heldout, tensors, ())
        self.vault.prepare(plan)
        self.handle(EngineSaid(e.JobPrepared(command.job, text(plan))))

    def _seal(self, command: e.SealCheckpoint, vault_life: int) -> None:
        if self.vault.alive and vault_life == self.vault.lives:
            self.handle(EngineSaid(self.vault.seal(command)))

    def _export(self, life: int, command: e.ExportJob) -> None:
        if life == self.life and self.coordinator is not None and self.chance("export fails"):
            self.handle(EngineSaid(e.Failed("export", command.job, "killed", False, False)))
        elif life == self.life and self.coordinator is not None:
            vector = np.concatenate([p for _, p in sorted(self.vault.sealed[command.version].items())])
            self.vault.exports.append((command.version, vector))
            self.handle(EngineSaid(e.Exported(command.job, command.version, "out")))

    def kill_engine(self, engine: WorkerEngine, reason: str, memory: bool) -> None:
        for node in self.nodes.values():
            for key, hosted in list(node.roles.items()):
                if hosted.engine is engine:
                    node.kill_engine(key, reason, memory)

    # -- what a person does -----------------------------------------------------------------------------------------

    def submit(self) -> None:
        self.handle(Submit(JOB, text(self.spec), self.kernel.now))

    def cancel(self) -> None:
        self.handle(Cancel(JOB, self.kernel.now))

    def resume(self) -> None:
        self.handle(Resume(JOB, self.kernel.now))

    @property
    def job(self) -> Run | None:
        return self.coordinator.runs.get(JOB) if self.coordinator is not None else None

    # -- what must always be true -----------------------------------------------------------------------------------

    def check_parts(self, engine: ShardEngine, parts: dict[int, Vector]) -> None:
        """A shard's parameters are those that the log has at this version."""
        assert engine.layout is not None
        wanted = self.proof.at(engine.generation, engine.version)
        for index, part in parts.items():
            block = engine.layout.blocks[index]
            there = wanted[block.offset : block.offset + block.numel]
            assert np.array_equal(part, there), f"block {index} at {engine.version}: {part} instead of {there}"

    def check_cut(self, generation: int, version: int, params: Vector) -> None:
        """What a worker pulled is one version, whole."""
        wanted = self.proof.at(generation, version)
        assert np.array_equal(params, wanted), f"a pull of {version} in {generation}: {params} instead of {wanted}"

    def check_checkpoint(self, command: e.SealCheckpoint, params: Vector) -> None:
        self.check_cut(command.generation, command.version, params)
        used = np.zeros(self.samples)
        for span in command.committed:
            used[span.start : span.stop] += 1
        assert np.array_equal(START - used, params), "the ledger of a checkpoint is that of its parameters"

    def _check_coordinator(self) -> None:
        self._events += 1
        run = self.job
        if run is None or run.state.samples is None:
            return
        samples = run.state.samples
        assert ledger.missing(samples) == 0, f"{ledger.missing(samples)} samples are nowhere"
        assert samples.doubled == 0, "samples were committed twice"
        assert run.state.version == self.proof.version, "the log has every version"
        assert len(run.ctx.pins) <= 3, f"pins are bounded: {run.ctx.pins}"
        if self._events % 16 == 0:
            spans = [h.span for h in samples.leases.values()] + samples.opened + samples.committed
            assert ledger.count(ledger.merge(spans)) == ledger.count(spans), "a sample in two places"
        if self._events % 128 == 0:
            self.check_fold()

    def check_fold(self) -> None:
        """The live state is the fold of the log."""
        if self.coordinator is None:
            return
        replayed = Coordinator(0)
        replayed.restore(self._records())
        for job, run in self.coordinator.runs.items():
            live, again = text(run.state), text(replayed.runs[job].state)
            assert live == again, f"the fold of the log differs:\n{live}\n{again}"

    def check_export(self) -> None:
        """Every sample was used exactly as often as the job says."""
        assert self.vault.exports, "nothing was exported"
        total = max(1, round(self.samples * self.spec.train.epochs))
        uses = np.array([(total - i + self.samples - 1) // self.samples for i in range(self.samples)])
        version, params = self.vault.exports[-1]
        assert np.array_equal(params, START - uses), f"version {version} has {params}"
        train = self.spec.train
        if train.deterministic:
            wanted = in_order(self.samples, train.epochs, train.batch_samples, train.sync.slots)
            assert self.proof.history() == wanted, "a deterministic run does not depend on who is there"

    def trace(self, who: str, key: Any, event: object, effects: list[fx.Effect]) -> None:
        if self.tracing:
            now = self.kernel.now / S
            lines = [f"{now:9.3f} {who:12} {key} > {event}"[:420]]
            lines += [f"{'':9} {'':12}    < {effect}"[:420] for effect in effects]
            self.recent.extend(lines)
