"""Modelled engines: the arithmetic of a job behind the failures of real processes, in charged time. Here what all of
them share, and a worker's.

They keep the promises of `protocol.engine` and no more: commands of one engine happen in order, except that transfers
and one computation overlap; an engine that dies forgets everything; what a dead engine said last may be lost.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from medley.protocol import engine as e
from medley.protocol.messages import Address, Route
from medley.runtimes.simulated.arithmetic import Blocks, Result, WorkerArithmetic
from medley.runtimes.simulated.durations import Durations
from medley.runtimes.simulated.kernel import MS
from medley.runtimes.simulated.watch import COORDINATOR

if TYPE_CHECKING:
    from medley.runtimes.simulated.job import Job
    from medley.runtimes.simulated.node import Node
    from medley.runtimes.simulated.shard_engine import ShardEngine
    from medley.runtimes.simulated.world import World

Say = Callable[[e.Report], None]


class Engine:
    """What both kinds have: a process on a machine, with a socket."""

    def __init__(self, world: World, node: Node, job: Job, address: Address, say: Say, durations: Durations) -> None:
        self.world, self.node, self.job = world, node, job
        self.address = address
        self.say = say
        self.durations = durations
        self.alive = True

    def later(self, delay_ns: int, report: e.Report) -> None:
        """Say this then, if the process still lives."""
        self.world.kernel.after(delay_ns, self.say_if_alive, report)

    def say_if_alive(self, report: e.Report) -> None:
        if self.alive:
            self.say(report)

    def busy(self, what: str, start_ns: int) -> None:
        self.world.was_busy(self.node.name, self.job.name, what, start_ns)


@dataclass(slots=True, eq=False)
class Update:
    """What was computed and is not settled."""

    result: Result
    finite: bool


@dataclass(slots=True, eq=False)
class WorkerEngine:
    """Pulls a version, computes on it, pushes updates to shards, keeps a carry."""

    base: Engine
    arithmetic: WorkerArithmetic
    routes: tuple[Route, ...] = ()
    generation: int = 0
    pulled: tuple[int, int] = (-1, -1)  # generation, version
    updates: dict[str, Update] = field(default_factory=dict)
    moving: set[tuple[str, str]] = field(default_factory=set)
    carrying: bool = False
    queue: deque[e.Compute | e.Measure] = field(default_factory=deque)
    abandoned: str = ""
    working: bool = False
    hung_ns: int = 0
    slowness: float = 1.0

    def run(self, command: e.WorkerCommand) -> None:
        base = self.base
        match command:
            case e.OpenWorker():
                self.generation = command.generation
                base.later(base.durations.open_ns(), e.Opened(base.address))
            case e.LoadWorker():
                self._load(command)
            case e.ResetWorker():
                self._reset(command)
            case e.SetRoutes():
                self.routes = command.routes
            case e.Prefetch():
                pass
            case e.Pull():
                Pulling(self, command).begin()
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
                self.carrying = False
                self.arithmetic.drop_carry()

    def _load(self, command: e.LoadWorker) -> None:
        """The job's data comes from the vault; then the model is built."""
        self.generation = command.generation
        base = self.base

        def fetched(arrived: bool) -> None:
            if arrived:
                base.later(base.durations.build_ns(), e.Loaded(command.generation, -1))
            else:
                base.later(MS, e.Failed("load", "", "the vault does not answer", False, False))

        base.world.move(COORDINATOR, base.node.name, base.job.data_nbytes, fetched, (base.address.endpoint,))

    def _reset(self, command: e.ResetWorker) -> None:
        self.generation = command.generation
        self.updates.clear()
        self.queue.clear()
        self.carrying = False
        self.pulled = (-1, -1)
        self.arithmetic.reset()

    # -- work -------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        if self.working or not self.queue or self.hung_ns:
            return
        self.working = True
        command = self.queue.popleft()
        if isinstance(command, e.Measure):
            self._measure(command)
        else:
            self._compute(command)

    def _measure(self, command: e.Measure) -> None:
        base = self.base
        assert self.pulled[1] == command.version, "measured is what was pulled"
        samples = base.job.heldout
        loss, tokens, accuracy = self.arithmetic.measure(samples)
        report = e.Measured(command.version, loss, tokens, accuracy)
        took = base.durations.measure_ns(samples, self.slowness * base.node.slowness)
        base.world.kernel.after(took, self._measured, report, base.world.kernel.now)

    def _measured(self, report: e.Measured, start_ns: int) -> None:
        self.working = False
        self.base.busy("measure", start_ns)
        self.base.say_if_alive(report)
        self._work()

    def _compute(self, command: e.Compute) -> None:
        base = self.base
        assert self.pulled == (self.generation, command.base), f"computes from {command.base}, holds {self.pulled}"
        assert not command.carry or self.carrying, "a carry that the engine does not have"
        self.carrying = self.carrying and not command.carry
        size = command.span.stop - command.span.start
        took = base.durations.compute_ns(size, command.steps, self.slowness * base.node.slowness)
        if base.world.chance("out of memory", "compute"):
            base.world.kernel.after(took, base.node.kill_this_engine, base, "out of memory", True)
            return
        result = self.arithmetic.compute(command.update, command.span, command.steps, command.lr, command.carry)
        started = (base.world.kernel.now, self.generation)
        base.world.kernel.after(took, self._computed, command, result, *started)

    def _computed(self, command: e.Compute, result: Result, start_ns: int, generation: int) -> None:
        base = self.base
        self.working = False
        if not base.alive:
            return
        base.busy("compute", start_ns)
        if command.update == self.abandoned or base.world.chance("compute fails", "compute"):
            self.arithmetic.settle(command.update, False)
            base.say(e.Failed("compute", command.update, "a bad sample", False, False))
            self._work()
            return
        finite = result.finite and not base.world.chance("not finite", "compute")
        if generation == self.generation:
            self.updates[command.update] = Update(result, finite)
        base.say(_computed_report(command, result, base.world.kernel.now - start_ns, finite))
        self._work()

    # -- updates out ------------------------------------------------------------------------------------------

    def _push(self, command: e.Push) -> None:
        update = self.updates.get(command.update)
        if update is None:
            return
        base = self.base
        for route in self.routes:
            key = (command.update, route.primary.endpoint)
            there = base.world.sockets.get(key[1])
            if key in self.moving or (there is not None and command.update in there.staged):
                continue
            self.moving.add(key)
            nbytes = sum([update.result.nbytes[i] for i in route.blocks])
            sent = Pushing(self, command, route, key, base.world.kernel.now)
            target = base.world.node_of(route.primary)
            base.world.move(base.node.name, target, nbytes, sent.arrived, (base.address.endpoint, key[1]))

    def _settle(self, command: e.Settle) -> None:
        known = self.updates.pop(command.update, None)
        carry = command.verdict == "carry"
        if carry:
            assert known is not None, f"{command.update} cannot be carried"
            assert not self.carrying, "one carry at a time"
            self.carrying = True
        self.arithmetic.settle(command.update, carry)

    def refusal(self, shard: ShardEngine | None, route: Route) -> str:
        """Why this shard's socket does not serve us; empty if it does."""
        if shard is None or not shard.base.alive:
            return f"{route.primary.endpoint} does not answer"
        return "" if self.base.address.key in shard.admitted else "the key is not admitted"


def _computed_report(command: e.Compute, result: Result, took_ns: int, finite: bool) -> e.Computed:
    return e.Computed(
        command.update,
        result.weight,
        result.loss_sum,
        result.correct,
        result.samples,
        result.tokens,
        took_ns / 1e9,
        2,
        result.residual_norm,
        finite,
    )


@dataclass(slots=True, eq=False)
class Pulling:
    """One version on its way to one worker, from all shards at once."""

    engine: WorkerEngine
    command: e.Pull
    found: Blocks = field(default_factory=dict)
    waiting: set[int] = field(default_factory=set)
    failed: str = ""
    nbytes: int = 0
    start_ns: int = 0

    def begin(self) -> None:
        engine, world = self.engine, self.engine.base.world
        self.start_ns = world.kernel.now
        self.waiting = {r.shard for r in engine.routes}
        for route in engine.routes:
            target = world.node_of(route.primary)
            asked_ns = world.message_ns(engine.base.node.name, target)
            world.kernel.after(asked_ns, self._asked, route, target)

    def _asked(self, route: Route, target: str) -> None:
        """The request is at the shard; what it has now is what travels."""
        engine = self.engine
        base = engine.base
        if not base.alive:
            return
        shard = base.world.sockets.get(route.primary.endpoint)
        reason = engine.refusal(shard, route)
        blocks = shard.read(self.command.generation, self.command.version) if shard and not reason else None
        if blocks is None:
            self._arrived(route, None, 0, reason or f"version {self.command.version} is gone", False)
            return
        nbytes = base.job.pull_nbytes(route.blocks)

        def arrived(whole: bool) -> None:
            self._arrived(route, blocks, nbytes, "the connection broke", whole)

        base.world.move(target, base.node.name, nbytes, arrived, (base.address.endpoint, route.primary.endpoint))

    def _arrived(self, route: Route, blocks: Blocks | None, nbytes: int, reason: str, whole: bool) -> None:
        base = self.engine.base
        if not base.alive:
            return
        self.waiting.discard(route.shard)
        if whole and blocks is not None:
            self.found.update(blocks)
            self.nbytes += nbytes
        else:
            self.failed = self.failed or reason
        if self.waiting:
            return
        if not self.failed and base.world.chance("pull fails", "pull"):
            self.failed = "a link broke"
        if self.failed:
            subject = str(self.command.version)
            base.later(base.world.jitter(5 * MS), e.Failed("pull", subject, self.failed, False, False))
        else:
            self._whole()

    def _whole(self) -> None:
        engine, command, base = self.engine, self.command, self.engine.base
        base.busy("pull", self.start_ns)
        if command.generation != engine.generation:
            return
        base.world.watch_pulled(base.job.name, command.generation, command.version, self.found)
        engine.arithmetic.load(command.version, self.found)
        engine.pulled = (command.generation, command.version)
        base.later(1, e.Pulled(command.generation, command.version, self.nbytes))


@dataclass(frozen=True, slots=True)
class Pushing:
    """One update's part on its way to one shard."""

    engine: WorkerEngine
    command: e.Push
    route: Route
    key: tuple[str, str]
    start_ns: int

    def arrived(self, whole: bool) -> None:
        engine, command = self.engine, self.command
        base = engine.base
        engine.moving.discard(self.key)
        update = engine.updates.get(command.update)
        if not base.alive or update is None or command.generation != engine.generation:
            return
        shard = base.world.sockets.get(self.route.primary.endpoint)
        reason = engine.refusal(shard, self.route) or ("" if whole else "the connection broke")
        if reason or base.world.chance("push fails", "push"):
            said = e.Failed("push", command.update, reason or "a link broke", False, False)
            base.later(base.world.jitter(5 * MS), said)
            return
        assert shard is not None
        base.busy("push", self.start_ns)
        parts = {i: update.result.blocks[i] for i in self.route.blocks}
        nbytes = sum([update.result.nbytes[i] for i in self.route.blocks])
        shard.stage(command.generation, command.update, parts, nbytes, update.finite)
