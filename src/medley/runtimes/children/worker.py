"""A worker's engine process: pulls parameters, computes updates on one thread, pushes parts, keeps the carry.

Transfers and the one computation overlap. An update's parts are kept until its fate is known; what the shards will see of
a refused one becomes the carry, which the next update takes along once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from medley.compression import make_codec
from medley.compression.codec import bytes_of
from medley.compression.feedback import ErrorFeedback, decode_update, encode_update
from medley.engines.memory import is_out_of_memory
from medley.engines.train import Result, TrainEngine, Work
from medley.protocol.codec import parse
from medley.protocol.engine import (
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
    Progress,
    Pull,
    Pulled,
    Push,
    Pushed,
    ResetWorker,
    SetRoutes,
    Settle,
)
from medley.protocol.errors import MedleyError, Unavailable, UserError
from medley.protocol.messages import Address, Route, Span
from medley.protocol.plan import Plan
from medley.runtimes.children.environment import encrypted, host
from medley.runtimes.children.plane import Admission, open_plane, peer_of
from medley.runtimes.children.task import build_task
from medley.runtimes.clock import SystemClock
from medley.runtimes.pipe import ChildLink
from medley.transports.tensors.contract import Accept, Already, Refuse, Refused, Source
from medley.transports.tensors.plane import TensorPlane
from medley.transports.tensors.wire import Header, Kind

T = TypeVar("T")
PROGRESS_S = 1.0


@dataclass(slots=True)
class Kept:
    """One computed update, encoded."""

    payloads: dict[int, torch.Tensor]
    weight: float
    pushing: bool = False


class Nobody:
    """A worker's plane only connects out: whoever knocks is refused."""

    async def offer(self, peer_key: bytes, header: Header) -> Accept | Refuse | Already:
        return Refuse("a worker takes nothing")

    async def received(self, peer_key: bytes, header: Header, buffer: memoryview) -> bytes:
        return b""

    async def asked(self, peer_key: bytes, header: Header) -> Source | Refuse:
        return Refuse("a worker gives nothing")


class WorkerHost:
    """Executor of the role's commands."""

    def __init__(self, link: ChildLink, opened: OpenWorker) -> None:
        self._link = link
        self._opened = opened
        self._plan = parse(opened.plan, Plan)
        self._spec = self._plan.spec
        self._layout = self._plan.layout()
        self._generation = opened.generation
        self._codec = make_codec(self._spec.train.compression)
        self._feedback: ErrorFeedback | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="compute")
        self._engine: TrainEngine | None = None
        self._routes: tuple[Route, ...] = ()
        self._vault = Address("", "")
        self._flat: torch.Tensor | None = None
        self._version = -1
        self._kept: dict[str, Kept] = {}
        self._carry: torch.Tensor | None = None
        self._carry_weight = 0.0
        self._done = 0
        self._busy = False
        self._tasks: asyncio.TaskGroup | None = None
        self.plane: TensorPlane | None = None

    async def execute(self, command: Command) -> None:
        match command:
            case SetRoutes(generation, routes, vault):
                self._generation, self._routes, self._vault = generation, routes, vault
            case LoadWorker():
                self._start(self._load(command.generation))
            case ResetWorker(generation):
                self._reset(generation)
            case Prefetch(_, span, steps):
                if self._engine is not None:
                    self._engine.prefetch(_work(span, steps))
            case Pull(generation, version):
                self._start(self._pull(generation, version))
            case Compute():
                self._start(self._compute(command))
            case Push(generation, update):
                self._start(self._push(generation, update))
            case Settle(update, verdict):
                self._settle(update, verdict)
            case DropCarry():
                self._carry, self._carry_weight = None, 0.0
            case Measure(version):
                self._start(self._measure(version))
            case _:
                raise AssertionError(f"not a command for a worker: {command}")

    # -- beginning --------------------------------------------------------------------------------------------

    async def _load(self, generation: int) -> None:
        assert self.plane is not None
        try:
            task = await build_task(
                self._plan, self._opened.job, self.plane, self._vault, self._opened.allow_code
            )
            self._engine = await self._do(lambda: self._build(task))
        except (MedleyError, OSError) as error:
            self._link.send(Failed("load", "", str(error), False, isinstance(error, UserError)))
            return
        except (RuntimeError, MemoryError) as error:
            memory = is_out_of_memory(error)
            self._link.send(Failed("load", "", f"the model could not be built: {error}", memory, True))
            return
        self._link.send(Loaded(generation, -1))

    def _build(self, task: Any) -> TrainEngine:
        dtype = getattr(task, "dtype", torch.float32)
        engine = TrainEngine(task, self._spec.train, self._spec.placement, dtype, SystemClock().now_ns)
        if self._opened.threads and not self._spec.train.threads:
            torch.set_num_threads(self._opened.threads)
        if self._opened.micro_batch:
            engine.micro_batch = min(engine.micro_batch, self._opened.micro_batch)
        if engine.layout.fingerprint != self._layout.fingerprint:
            raise UserError(
                "this machine builds another model than the coordinator planned; install the same versions of medley "
                "and transformers, and the same task, on all machines"
            )
        options = self._spec.train.compression
        if options.kind != "none" and options.feedback:
            self._feedback = ErrorFeedback(self._layout.numel, options.decay)
        self._flat = torch.empty(self._layout.numel, dtype=torch.float32)
        return engine

    def _reset(self, generation: int) -> None:
        self._generation = generation
        self._kept.clear()
        self._carry, self._carry_weight = None, 0.0
        self._version = -1
        if self._feedback is not None:
            self._feedback.zero()

    # -- parameters in ----------------------------------------------------------------------------------------

    async def _pull(self, generation: int, version: int) -> None:
        """All shards' parts of one version, joined into one flat vector."""
        flat = torch.empty(self._layout.numel, dtype=torch.float32)
        problem = ""
        try:
            async with asyncio.TaskGroup() as group:
                for route in self._routes:
                    group.create_task(self._pull_shard(route, generation, version, flat))
        except* (Refused, Unavailable, ValueError) as errors:
            problem = "; ".join(str(e) for e in errors.exceptions)
        if problem:
            self._link.send(Failed("pull", str(version), problem, False, False))
            return
        self._flat, self._version = flat, version
        self._link.send(Pulled(generation, version, flat.nbytes))

    async def _pull_shard(self, route: Route, generation: int, version: int, flat: torch.Tensor) -> None:
        assert self.plane is not None
        header = Header(
            kind=Kind.PULL, run=self._opened.job, name=str(route.shard), generation=generation, version=version
        )
        blocks = [self._layout.blocks[i] for i in sorted(route.blocks)]
        part = torch.empty(sum(b.numel for b in blocks), dtype=torch.float32)
        await self.plane.get(peer_of(route.primary), header, memoryview(part.numpy()).cast("B"))
        offset = 0
        for block in blocks:
            flat[block.offset : block.offset + block.numel] = part[offset : offset + block.numel]
            offset += block.numel

    # -- work -------------------------------------------------------------------------------------------------

    async def _compute(self, command: Compute) -> None:
        self._busy = True
        try:
            computed = await self._do(lambda: self._compute_update(command))
        except (RuntimeError, MemoryError, MedleyError, OSError, ValueError, TypeError) as error:
            memory = is_out_of_memory(error)
            fatal = isinstance(error, UserError)
            reason = str(error) if fatal else f"{type(error).__name__}: {error}"
            self._link.send(Failed("compute", command.update, reason, memory, fatal))
        else:
            self._link.send(computed)
        finally:
            self._busy = False

    def _compute_update(self, command: Compute) -> Computed:
        engine, flat = self._engine, self._flat
        assert engine is not None and flat is not None and self._version == command.base
        engine.load_base(command.base, flat)
        result = engine.run(_work(command.span, command.steps), command.lr, self._count)
        weight = result.weight
        if command.carry and self._carry is not None:
            result.update.add_(self._carry)
            weight += self._carry_weight
            self._carry, self._carry_weight = None, 0.0
        payloads = encode_update(result.update, self._layout.blocks, self._codec, self._feedback)
        self._kept[command.update] = Kept(payloads, weight)
        return self._report(command, result, weight)

    def _report(self, command: Compute, result: Result, weight: float) -> Computed:
        return Computed(
            update=command.update,
            weight=weight,
            loss_sum=result.loss_sum,
            correct=float(result.correct),
            samples=result.samples,
            tokens=result.tokens,
            seconds=result.seconds,
            micro_batch=result.micro_batch,
            residual_norm=self._feedback.norm() if self._feedback is not None else 0.0,
            finite=result.finite,
        )

    def _count(self) -> bool:
        """Called by the engine for every micro-batch: the proof that it moves."""
        self._done += 1
        return False

    async def _measure(self, version: int) -> None:
        def measure() -> Measured:
            assert self._engine is not None and self._flat is not None
            self._engine.load_base(version, self._flat)
            seen = self._engine.evaluate(self._spec.data.heldout_samples)
            return Measured(version, seen.loss, seen.tokens, seen.accuracy)

        try:
            self._link.send(await self._do(measure))
        except (RuntimeError, MemoryError, MedleyError) as error:
            self._link.send(Failed("measure", str(version), str(error), is_out_of_memory(error), False))

    # -- updates out ------------------------------------------------------------------------------------------

    async def _push(self, generation: int, update: str) -> None:
        kept = self._kept.get(update)
        if kept is None or kept.pushing:
            return
        kept.pushing = True
        try:
            async with asyncio.TaskGroup() as group:
                for route in self._routes:
                    group.create_task(self._push_shard(route, generation, update, kept))
        except* (Refused, Unavailable) as errors:
            reason = "; ".join(str(e) for e in errors.exceptions)
            self._link.send(Failed("push", update, reason, False, False))
        else:
            self._link.send(Pushed(generation, update, sum(p.nbytes for p in kept.payloads.values())))
        finally:
            kept.pushing = False

    async def _push_shard(self, route: Route, generation: int, update: str, kept: Kept) -> None:
        assert self.plane is not None
        buffers = [bytes_of(kept.payloads[i]) for i in sorted(route.blocks)]
        header = Header(
            kind=Kind.UPDATE,
            run=self._opened.job,
            name=update,
            generation=generation,
            sequence=route.shard,
            nbytes=sum(b.nbytes for b in buffers),
        )
        await self.plane.put(peer_of(route.primary), header, buffers)

    def _settle(self, update: str, verdict: str) -> None:
        kept = self._kept.pop(update, None)
        if kept is None or verdict != "carry":
            return
        seen = torch.empty(self._layout.numel, dtype=torch.float32)
        payloads = {i: bytes_of(p) for i, p in kept.payloads.items()}
        self._carry = decode_update(payloads, self._layout.blocks, self._codec, seen)
        self._carry_weight = kept.weight

    # -- machinery --------------------------------------------------------------------------------------------

    async def _do(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        assert self._tasks is not None
        self._tasks.create_task(work)

    async def _report_progress(self) -> None:
        clock = SystemClock()
        while True:
            await clock.sleep(PROGRESS_S)
            self._link.send(Progress(self._done))

    async def run(self) -> None:
        """Open the plane, then execute commands for ever."""
        self.plane, address = await open_plane(host(), 0, encrypted(), Nobody(), Admission())
        self._link.send(Opened(address))
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            tasks.create_task(self._report_progress())
            while True:
                await self.execute(await self._link.commands.get())


def _work(span: Span, steps: int) -> Work:
    return Work(((span.epoch, span.start, span.stop),), steps)


async def serve() -> None:
    link = ChildLink()
    first = await link.commands.get()
    assert isinstance(first, OpenWorker)
    await WorkerHost(link, first).run()
