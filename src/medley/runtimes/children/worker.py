"""A worker's engine process: pulls parameters, computes updates on one thread, pushes parts.

Transfers and the one computation overlap. This file moves bytes and reports; the tensors are `engines.worker`.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, TypeVar

from medley.concurrency import TaskGroup
from medley.engines.worker import Base, Outcome, WorkerEngine, bytes_in, is_out_of_memory
from medley.protocol.codec import parse
from medley.protocol.engine import (
    Abandon,
    Command,
    Compute,
    Computed,
    DropCarry,
    Failed,
    Loaded,
    LoadWorker,
    Measure,
    Measured,
    Opened,
    OpenWorker,
    Prefetch,
    Pull,
    Pulled,
    Push,
    Pushed,
    ResetWorker,
    SetRoutes,
    Settle,
)
from medley.protocol.errors import MedleyError, Unavailable, UserError
from medley.protocol.messages import Address, Route
from medley.protocol.plan import Plan
from medley.runtimes.children.environment import compute_factor, encrypted, host
from medley.runtimes.children.plane import Admission, NoObjects, open_plane, peer_of
from medley.runtimes.children.task import build_task
from medley.runtimes.clock import SystemClock
from medley.runtimes.pipe import ChildLink
from medley.transports.tensors.contract import Refused
from medley.transports.tensors.plane import TensorPlane
from medley.transports.tensors.wire import Header, Kind

T = TypeVar("T")
SLICE_S = 0.25  # of a straggler's waiting
HALF = "bf16"  # what a pull asks for beside the shard's number, if anything


class WorkerHost:
    """Executor of the role's commands."""

    def __init__(self, link: ChildLink, opened: OpenWorker) -> None:
        self._link = link
        self._opened = opened
        self._plan = parse(opened.plan, Plan)
        self._generation = opened.generation
        self._factor = compute_factor()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="compute")
        self._engine: WorkerEngine | None = None
        self._routes: tuple[Route, ...] = ()
        self._vault = Address("", "")
        self._rerouted = asyncio.Event()  # set, and replaced, when the routes change
        self._pushing: set[str] = set()
        self._abandoned = ""  # one lease is computed at a time, so one is enough
        self._tasks: asyncio.TaskGroup | None = None
        self.plane: TensorPlane | None = None

    @property
    def engine(self) -> WorkerEngine:
        assert self._engine is not None, "the role commands work only once the engine is loaded"
        return self._engine

    async def execute(self, command: Command) -> None:
        match command:
            case SetRoutes(generation, routes, vault):
                self._generation, self._routes, self._vault = generation, routes, vault
                self._rerouted.set()
                self._rerouted = asyncio.Event()
            case LoadWorker():
                self._start(self._load(command.generation))
            case ResetWorker(generation):
                self._generation = generation
                if self._engine is not None:
                    self._start(self._do(self._engine.reset))  # on its thread: after what runs, before what comes
            case Prefetch(_, span, steps):
                if self._engine is not None:
                    self._engine.prefetch(span, steps)
            case Pull(generation, version):
                self._start(self._pull(generation, version))
            case Compute():
                self._start(self._compute(command))
            case Abandon(update):
                self._abandoned = update
            case Push(generation, update):
                self._start(self._push(generation, update))
            case Settle(update, verdict):
                if self._engine is not None:
                    self._engine.settle(update, verdict == "carry")
            case DropCarry():
                if self._engine is not None:
                    self._engine.drop_carry()
            case Measure(version):
                self._start(self._measure(version))
            case _:
                raise AssertionError(f"not a command for a worker: {command}")

    async def _load(self, generation: int) -> None:
        assert self.plane is not None
        opened = self._opened
        try:
            task = await build_task(self._plan, opened.job, self.plane, self._vault, opened.allow_code)
            await self._do(task.check_memory)
            self._engine = await self._do(
                lambda: WorkerEngine(task, self._plan, opened.threads, opened.micro_batch, SystemClock().now_ns)
            )
        except (MedleyError, OSError) as error:
            self._link.send(Failed("load", "", str(error), False, isinstance(error, UserError)))
        except Exception as error:  # a person's task may raise anything, and would raise it again
            reason = f"the model could not be built: {type(error).__name__}: {error}"
            self._link.send(Failed("load", "", reason, is_out_of_memory(error), True))
        else:
            self._link.send(Loaded(generation, -1, self.engine.micro_batch))

    # -- parameters in ----------------------------------------------------------------------------------------

    async def _pull(self, generation: int, version: int) -> None:
        """All shards' parts of one version, joined into one flat vector."""
        base = self.engine.base()
        _, problem = await self._with_every_shard(lambda route: self._pull_shard(route, generation, version, base))
        if problem:
            self._link.send(Failed("pull", str(version), problem, False, False))
            return
        if generation != self._generation:
            return
        await self._do(lambda: self.engine.arrived(version, base))
        self._link.send(Pulled(generation, version, base.flat.nbytes))

    async def _pull_shard(self, route: Route, generation: int, version: int, base: Base) -> int:
        assert self.plane is not None
        header = Header(
            kind=Kind.PULL,
            run=self._opened.job,
            name=f"{route.shard}/{HALF}" if self.engine.half else str(route.shard),
            generation=generation,
            version=version,
        )
        room = base.room(route.blocks)
        part = await self.plane.get(peer_of(route.primary), header, bytes_in(room))
        base.take(route.blocks, room)
        return part.nbytes

    # -- work -------------------------------------------------------------------------------------------------

    async def _compute(self, command: Compute) -> None:
        generation = self._generation
        try:
            outcome = await self._do(lambda: self._compute_if_wanted(command, generation))
        except Exception as error:
            memory, fatal = is_out_of_memory(error), isinstance(error, UserError)
            reason = str(error) if fatal else f"{type(error).__name__}: {error}"
            self._link.send(Failed("compute", command.update, reason, memory, fatal))
        else:
            self._link.send(_computed(command.update, outcome))

    def _compute_if_wanted(self, command: Compute, generation: int) -> Outcome:
        """On the engine's thread. A rollback while the command waited there makes it meaningless."""
        if generation != self._generation or self.engine.version != command.base:
            raise ValueError(f"base {command.base} is not here any more")

        def futile() -> bool:
            """Called for every micro-batch: the proof that it moves, and the question whether anybody wants it."""
            self._link.done += 1
            return self._abandoned == command.update or generation != self._generation

        clock = SystemClock()
        began_ns = clock.now_ns()
        outcome = self.engine.compute(command.update, command.span, command.steps, command.lr, command.carry, futile)
        if self._factor > 1:
            return self._straggled(outcome, (clock.now_ns() - began_ns) / 1e9, futile)
        return outcome

    def _straggled(self, outcome: Outcome, took_s: float, futile: Callable[[], bool]) -> Outcome:
        """As a machine that is so many times slower: the rest of its time is waited for, in vain if nobody cares."""
        left_s, nothing = took_s * (self._factor - 1), threading.Event()
        while left_s > 0 and not futile():
            nothing.wait(min(left_s, SLICE_S))
            left_s -= SLICE_S
        return replace(outcome, result=replace(outcome.result, seconds=outcome.result.seconds * self._factor))

    async def _measure(self, version: int) -> None:
        try:
            seen = await self._do(lambda: self.engine.measure(self._plan.spec.data.heldout_samples))
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            self._link.send(Failed("measure", str(version), reason, is_out_of_memory(error), False))
        else:
            self._link.send(Measured(version, seen.loss, seen.tokens, seen.accuracy))

    # -- updates out ------------------------------------------------------------------------------------------

    async def _push(self, generation: int, update: str) -> None:
        if update in self._pushing:
            return
        self._pushing.add(update)
        try:
            sent, problem = await self._with_every_shard(lambda route: self._push_shard(route, generation, update))
        finally:
            self._pushing.discard(update)
        if problem:
            self._link.send(Failed("push", update, problem, False, False))
        else:
            self._link.send(Pushed(generation, update, sent))

    async def _push_shard(self, route: Route, generation: int, update: str) -> int:
        assert self.plane is not None
        buffers = self.engine.parts(update, route.blocks)
        if buffers is None:
            return 0
        header = Header(
            kind=Kind.UPDATE,
            run=self._opened.job,
            name=update,
            generation=generation,
            sequence=route.shard,
            nbytes=sum(b.nbytes for b in buffers),
        )
        await self.plane.put(peer_of(route.primary), header, buffers)
        return header.nbytes

    # -- machinery --------------------------------------------------------------------------------------------

    async def _with_every_shard(self, move: Callable[[Route], Coroutine[Any, Any, int]]) -> tuple[int, str]:
        """Bytes moved in all, and what went wrong. When routes change, nobody may be left where the old ones led: then
        it begins anew by the new ones. What a shard has already it takes for done."""
        while True:
            rerouted = self._rerouted
            async with TaskGroup() as group:
                attempt = group.create_task(_attempt([move(route) for route in self._routes]))
                watch = group.create_task(_cancel_when(rerouted, attempt))
                attempt.add_done_callback(lambda _, watch=watch: watch.cancel())  # type: ignore[misc]
            if not attempt.cancelled():
                return attempt.result()

    async def _do(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        assert self._tasks is not None
        self._tasks.create_task(work)

    async def run(self) -> None:
        """Open the plane, then execute commands for ever."""
        self.plane, address = await open_plane(host(), 0, encrypted(), NoObjects(), Admission())
        self._link.send(Opened(address))
        async with TaskGroup() as tasks:
            self._tasks = tasks
            while True:
                await self.execute(await self._link.commands.get())


async def _attempt(moves: list[Coroutine[Any, Any, int]]) -> tuple[int, str]:
    problem, moved = "", 0
    try:
        async with TaskGroup() as group:
            parts = [group.create_task(move) for move in moves]
        moved = sum(part.result() for part in parts)
    except* (Refused, Unavailable, ValueError, UserError) as errors:
        problem = "; ".join(str(e) for e in errors.exceptions)
    return moved, problem


async def _cancel_when(event: asyncio.Event, task: asyncio.Task[Any]) -> None:
    await event.wait()
    task.cancel()


def _computed(update: str, outcome: Outcome) -> Computed:
    result = outcome.result
    return Computed(
        update=update,
        weight=outcome.weight,
        loss_sum=result.loss_sum,
        correct=float(result.correct),
        samples=result.samples,
        tokens=result.tokens,
        seconds=result.seconds,
        micro_batch=result.micro_batch,
        residual_norm=outcome.residual_norm,
        finite=result.finite,
    )


async def serve() -> None:
    link = ChildLink()
    first = await link.commands.get()
    assert isinstance(first, OpenWorker)
    await WorkerHost(link, first).run()
