"""Modelled engines: real arithmetic on a small vector, invented durations, the failures of real processes.

They keep the promises of `protocol.engine` and no more: commands of one engine happen in order, except that transfers
and one computation overlap; an engine that dies forgets everything; what a dead engine said last may be lost.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from medley.protocol import engine as e
from medley.protocol.codec import parse
from medley.protocol.layout import Layout
from medley.protocol.messages import Address, Route
from medley.protocol.plan import Plan
from medley.runtimes.simulated.kernel import MS
from medley.runtimes.simulated.proof import START, Vector

if TYPE_CHECKING:
    from medley.runtimes.simulated.world import World

Say = Callable[[e.Report], None]
Parts = dict[int, Vector]  # by block


@dataclass(slots=True)
class WorkerEngine:
    """Computes one-hot gradients, pushes them to shards, keeps a carry."""

    world: World
    address: Address
    say: Say
    alive: bool = True
    plan: Plan | None = None
    layout: Layout | None = None
    routes: tuple[Route, ...] = ()
    generation: int = 0
    pulled: tuple[int, int] = (-1, -1)  # generation, version
    params: Vector | None = None
    updates: dict[str, Vector] = field(default_factory=dict)
    finite: dict[str, bool] = field(default_factory=dict)
    acknowledged: set[tuple[str, str]] = field(default_factory=set)  # update, endpoint
    carry: Vector | None = None
    queue: deque[e.Compute | e.Measure] = field(default_factory=deque)
    abandoned: str = ""
    busy: bool = False
    hung_ns: int = 0
    slowness: float = 1.0

    def run(self, command: e.WorkerCommand) -> None:
        w = self.world
        match command:
            case e.OpenWorker():
                self.plan = parse(command.plan, Plan)
                self.layout = self.plan.layout()
                self.generation = command.generation
                self._later(w.jitter(20 * MS), e.Opened(self.address))
            case e.LoadWorker():
                self.generation = command.generation
                self._later(w.jitter(50 * MS), e.Loaded(command.generation, -1))
            case e.ResetWorker():
                self.generation = command.generation
                self.updates.clear()
                self.queue.clear()
                self.carry = None
                self.pulled, self.params = (-1, -1), None
            case e.SetRoutes():
                self.routes = command.routes
            case e.Prefetch():
                pass
            case e.Pull():
                self._pull(command)
            case e.Compute() | e.Measure():
                self.queue.append(command)
                self._work()
            case e.Abandon():
                self.abandoned = command.update
            case e.Push():
                self._push(command)
            case e.Settle():
                self._settle(command)
            case e.DropCarry():
                self.carry = None

    def _later(self, delay_ns: int, report: e.Report) -> None:
        self.world.kernel.after(delay_ns, self._say_if_alive, report)

    def _say_if_alive(self, report: e.Report) -> None:
        if self.alive:
            self.say(report)

    # -- parameters in ----------------------------------------------------------------------------------------

    def _pull(self, command: e.Pull) -> None:
        assert self.layout is not None
        found: Parts = {}
        waiting = {r.shard for r in self.routes}
        failed: list[str] = []

        def arrive(route: Route) -> None:
            if not self.alive:
                return
            shard = self.world.sockets.get(route.primary.endpoint)
            reason = self._refusal(shard, route) or self._read(shard, command, found)
            waiting.discard(route.shard)
            if reason:
                failed.append(reason)
            if waiting:
                return
            if failed or self.world.chance("pull fails"):
                reason = failed[0] if failed else "a link broke"
                self._later(self.world.jitter(5 * MS), e.Failed("pull", str(command.version), reason, False, False))
            else:
                self._pulled(command, found)

        for route in self.routes:
            self.world.kernel.after(self.world.jitter(20 * MS), arrive, route)

    def _read(self, shard: ShardEngine | None, command: e.Pull, found: Parts) -> str:
        assert shard is not None
        parts = shard.read(command.generation, command.version)
        if parts is None:
            return f"version {command.version} is gone"
        found.update(parts)
        return ""

    def _pulled(self, command: e.Pull, found: Parts) -> None:
        assert self.layout is not None
        if command.generation != self.generation:
            return
        params = np.concatenate([found[b.index] for b in self.layout.blocks])
        self.world.check_cut(command.generation, command.version, params)
        self.params, self.pulled = params, (command.generation, command.version)
        self._later(1, e.Pulled(command.generation, command.version, params.nbytes))

    # -- work -------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        if self.busy or not self.queue or self.hung_ns:
            return
        self.busy = True
        command = self.queue.popleft()
        if isinstance(command, e.Measure):
            assert self.pulled[1] == command.version, "measured is what was pulled"
            self.world.kernel.after(self.world.jitter(200 * MS), self._measured, command)
            return
        assert self.pulled == (self.generation, command.base), f"computes from {command.base}, holds {self.pulled}"
        assert not command.carry or self.carry is not None, "a carry that the engine does not have"
        carry, generation = None, self.generation
        if command.carry:
            carry, self.carry = self.carry, None
        size = command.span.stop - command.span.start
        took = self.world.jitter(int(100 * MS * size * self.slowness)) // 2
        if self.world.chance("out of memory"):
            self.world.kernel.after(took, self.world.kill_engine, self, "out of memory", True)
            return
        self.world.kernel.after(took, self._computed, command, carry, generation, took)

    def _measured(self, command: e.Measure) -> None:
        self.busy = False
        self._say_if_alive(e.Measured(command.version, 1.0 / (1 + command.version), 10, 0.5))
        self._work()

    def _computed(self, command: e.Compute, carry: Vector | None, generation: int, took: int) -> None:
        self.busy = False
        if not self.alive:
            return
        if command.update == self.abandoned or self.world.chance("compute fails"):
            self._say_if_alive(e.Failed("compute", command.update, "a bad sample", False, False))
            self._work()
            return
        assert self.plan is not None
        update = np.zeros(self.plan.samples)
        update[command.span.start : command.span.stop] += 1
        if carry is not None:
            update += carry
        finite = not self.world.chance("not finite")
        if generation == self.generation:
            self.updates[command.update], self.finite[command.update] = update, finite
        size = command.span.stop - command.span.start
        self._say_if_alive(
            e.Computed(
                command.update,
                float(size),
                float(size),
                0.0,
                size,
                size * 10,
                took / 1e9,
                2,
                0.0,
                finite,
            )
        )
        self._work()

    # -- updates out ------------------------------------------------------------------------------------------

    def _push(self, command: e.Push) -> None:
        if command.update not in self.updates:
            return
        for route in self.routes:
            if (command.update, route.primary.endpoint) not in self.acknowledged:
                self.world.kernel.after(self.world.jitter(30 * MS), self._deliver, command, route)

    def _deliver(self, command: e.Push, route: Route) -> None:
        update = self.updates.get(command.update)
        if not self.alive or update is None or command.generation != self.generation:
            return
        shard = self.world.sockets.get(route.primary.endpoint)
        reason = self._refusal(shard, route)
        if reason or self.world.chance("push fails"):
            reason = reason or "a link broke"
            self._later(self.world.jitter(5 * MS), e.Failed("push", command.update, reason, False, False))
            return
        assert shard is not None and self.layout is not None
        parts = {i: _block(update, self.layout, i) for i in route.blocks}
        if not self.finite[command.update]:
            parts = {i: p * np.nan for i, p in parts.items()}
        if shard.stage(command.generation, command.update, parts):
            self.acknowledged.add((command.update, route.primary.endpoint))

    def _settle(self, command: e.Settle) -> None:
        update = self.updates.pop(command.update, None)
        if command.verdict == "carry":
            assert update is not None, f"{command.update} cannot be carried"
            assert self.carry is None, "one carry at a time"
            self.carry = update

    def _refusal(self, shard: ShardEngine | None, route: Route) -> str:
        if shard is None or not shard.alive:
            return f"{route.primary.endpoint} does not answer"
        return "" if self.address.key in shard.admitted else "the key is not admitted"


@dataclass(slots=True)
class ShardEngine:
    """Blocks of parameters: staged parts, commits in order, pinned versions."""

    world: World
    address: Address
    say: Say
    alive: bool = True
    shard: int = -1
    layout: Layout | None = None
    blocks: tuple[int, ...] = ()
    generation: int = 0
    admitted: frozenset[str] = frozenset()
    version: int = -1
    params: Parts = field(default_factory=dict)
    staged: dict[str, Parts] = field(default_factory=dict)
    pins: dict[int, Parts] = field(default_factory=dict)
    backup: Address = field(default_factory=lambda: Address("", ""))

    def run(self, command: e.ShardCommand) -> None:
        w = self.world
        match command:
            case e.OpenShard():
                self.shard, self.blocks = command.shard, command.blocks
                self.layout = parse(command.plan, Plan).layout()
                self._later(w.jitter(20 * MS), e.Opened(self.address))
            case e.SetPeers():
                self.admitted = frozenset(command.keys)
                self._later(2 * MS, e.PeersKnown(command.number))
            case e.LoadShard():
                self._forget()
                self.generation = command.generation
                w.kernel.after(w.jitter(40 * MS), self._load, command)
            case e.SetRelay():
                self.backup = command.backup
                for update in list(self.staged):
                    self._relay(update)
            case e.Apply():
                self._apply(command)
            case e.Discard():
                for update in command.updates:
                    self.staged.pop(update, None)
            case e.PinVersion():
                assert command.version == self.version, "only the present version can be pinned"
                self.pins[command.version] = self.params
                assert len(self.pins) <= 4, f"pins are bounded: {sorted(self.pins)}"
            case e.UnpinVersion():
                self.pins.pop(command.version, None)
            case e.WriteVersion():
                self._write(command)

    def read(self, generation: int, version: int) -> Parts | None:
        """What a worker that asks for this version gets."""
        if generation != self.generation or self.version < 0:
            return None
        if version == self.version:
            return self.params
        return self.pins.get(version)

    def stage(self, generation: int, update: str, parts: Parts) -> bool:
        """Take one update's part; False while this engine cannot."""
        if not self.alive or generation != self.generation or self.version < 0:
            return False
        assert set(parts) == set(self.blocks)
        if update in self.staged:
            return True
        self.staged[update] = parts
        total = sum(float((p**2).sum()) for p in parts.values())
        finite = bool(np.isfinite(total))
        self._later(
            self.world.jitter(MS), e.PartArrived(generation, update, finite, total if finite else 0.0, 8 * len(parts))
        )
        self._relay(update)
        return True

    def _relay(self, update: str) -> None:
        if self.backup.endpoint:
            self.world.kernel.after(self.world.jitter(10 * MS), self._pass_on, update, self.backup.endpoint)

    def _pass_on(self, update: str, endpoint: str) -> None:
        parts = self.staged.get(update)
        if not self.alive or parts is None or endpoint != self.backup.endpoint:
            return
        other = self.world.sockets.get(endpoint)
        admitted = other is not None and other.alive and self.address.key in other.admitted
        failed = self.world.chance("push fails") or not admitted
        if failed or other is None or not other.stage(self.generation, update, parts):
            self._say_if_alive(e.Failed("relay", update, "the backup does not answer", False, False))

    def _apply(self, command: e.Apply) -> None:
        assert command.generation == self.generation, "a commit of another generation"
        assert command.number == self.version + 1, f"commit {command.number} at version {self.version}"
        params = {i: p.copy() for i, p in self.params.items()}
        for member in command.members:
            for index, part in self.staged.pop(member.update).items():
                params[index] -= command.lr * member.weight * part
        self.params, self.version = params, command.number
        self.world.check_parts(self, params)
        self._later(self.world.jitter(3 * MS), e.AppliedVersion(self.generation, self.version))

    def _load(self, command: e.LoadShard) -> None:
        if not self.alive or command.generation != self.generation:
            return
        vault = self.world.vault
        fatal, reason = False, ""
        if not vault.alive or self.address.key not in vault.admitted:
            reason = "the vault does not answer"
        elif command.version in vault.damaged:
            fatal, reason = True, "its digest does not match"
        elif command.version not in vault.sealed:
            fatal, reason = True, "there is no such checkpoint"
        if reason:
            self._say_if_alive(e.Failed("load", str(command.version), reason, False, fatal))
            return
        self._forget()
        checkpoint = vault.sealed[command.version]
        self.params = {i: checkpoint[i] for i in self.blocks}
        self.version = command.version
        self.world.check_parts(self, self.params)
        self._say_if_alive(e.Loaded(command.generation, command.version))

    def _write(self, command: e.WriteVersion) -> None:
        parts = self.read(command.generation, command.version)
        subject = str(command.version)
        if parts is None:
            self._later(1, e.Failed("write", subject, "that version is gone", False, False))
            return
        self.world.kernel.after(self.world.jitter(100 * MS), self._written, command, parts)

    def _written(self, command: e.WriteVersion, parts: Parts) -> None:
        vault = self.world.vault
        if not self.alive:
            return
        if not vault.alive or self.address.key not in vault.admitted or self.world.chance("write fails"):
            self._say_if_alive(e.Failed("write", str(command.version), "the vault does not answer", False, False))
            return
        name = f"{command.generation}-{command.version}-{self.shard}"
        vault.parts[name] = parts
        self._say_if_alive(e.WroteVersion(command.generation, command.version, name, "d", 8 * len(parts)))

    def _forget(self) -> None:
        self.version = -1
        self.params, self.staged, self.pins = {}, {}, {}

    def _later(self, delay_ns: int, report: e.Report) -> None:
        self.world.kernel.after(delay_ns, self._say_if_alive, report)

    def _say_if_alive(self, report: e.Report) -> None:
        if self.alive:
            self.say(report)


@dataclass(slots=True)
class Vault:
    """The coordinator's child that keeps checkpoints. What is sealed outlives it; who may connect does not."""

    world: World
    alive: bool = False
    lives: int = 0
    admitted: frozenset[str] = frozenset()
    parts: dict[str, Parts] = field(default_factory=dict)
    sealed: dict[int, Parts] = field(default_factory=dict)
    damaged: set[int] = field(default_factory=set)
    exports: list[tuple[int, Vector]] = field(default_factory=list)

    def open(self) -> None:
        self.alive = True
        self.lives += 1
        self.admitted = frozenset()

    def seal(self, command: e.SealCheckpoint) -> e.Report:
        if self.world.chance("seal fails"):
            return e.Failed("seal", command.job, "the disk is full", False, False)
        blocks: Parts = {}
        for part in command.parts:
            blocks.update(self.parts[part.file])
        self.sealed[command.version] = blocks
        self.damaged.discard(command.version)
        self.world.check_checkpoint(command, join(blocks))
        for version in [v for v in self.sealed if v not in command.keep]:
            del self.sealed[version]
        return e.Sealed(command.job, command.version, "d", 1)

    def prepare(self, plan: Plan) -> None:
        if 0 not in self.sealed:
            self.sealed[0] = {b.index: np.full(b.numel, START) for b in plan.layout().blocks}


def join(parts: Parts) -> Vector:
    """The whole vector of all blocks in order."""
    return np.concatenate([parts[i] for i in sorted(parts)])


def _block(vector: Vector, layout: Layout, index: int) -> Vector:
    block = layout.blocks[index]
    return vector[block.offset : block.offset + block.numel].copy()


def keys(addresses: Iterable[Address]) -> set[str]:
    return {a.key for a in addresses}
