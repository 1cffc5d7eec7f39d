"""Real training inside the virtual clock: the production engines, hosted in this process, one thread.

`engines.worker.WorkerEngine` computes each lease, encodes it with error feedback and keeps the carry;
`engines.shard.ShardEngine` merges and steps. So loss curves, compression and the modes are the real ones; only the
time that they take is charged elsewhere. The calls are synchronous and cost what they cost: a lease of the tiny
perceptron about a millisecond. `compute` starts from the base that was loaded last: a host that lets a pull arrive
while a lease computes calls `compute` when the lease begins.

A checkpoint keeps, of each block, its tensors by the names that they have in a checkpoint's file (`block.3`,
`block.3.m`, `block.3.step`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from medley.engines.flat import FlatParameters
from medley.engines.shard import ShardEngine
from medley.engines.task import Task
from medley.engines.train import fix_arithmetic
from medley.engines.worker import WorkerEngine
from medley.protocol.layout import Block, Layout
from medley.protocol.messages import Span
from medley.protocol.plan import Plan
from medley.protocol.spec import JobSpec
from medley.runtimes.simulated.arithmetic import Blocks, Result
from medley.runtimes.simulated.arithmetic.tasks import Tiny, tiny_task
from medley.runtimes.simulated.setup import Workload

Saved = dict[int, dict[str, Tensor]]  # by block, then by name


def _no_clock() -> int:
    """Seconds are the simulator's business."""
    return 0


def _wanted() -> bool:
    """Nobody abandons a lease in the middle of a call."""
    return False


class RealArithmetic:
    """One job's task, layout and first parameters. Raises UserError for an unknown task."""

    def __init__(self, spec: JobSpec, workload: Workload) -> None:
        self._task = tiny_task(workload.task)
        torch.set_num_threads(1)
        fix_arithmetic(spec.train)
        torch.manual_seed(spec.train.seed)
        flat = FlatParameters(self._task.model().train(), torch.float32, torch.device("cpu"))
        layout = flat.layout(spec.placement.block_elements)
        self._initial = {b.index: {_name(b.index): _slice(flat.initial, b)} for b in layout.blocks}
        heldout = self._task.heldout()
        exam = 0 if heldout is None else min(len(heldout), spec.data.heldout_samples)
        self._plan = Plan(spec, len(self._task.dataset()), exam, layout.tensors, ())

    @property
    def tokens_per_sample(self) -> int:
        """What a sample counts, for those who charge time."""
        return self._task.tokens_per_sample if isinstance(self._task, Tiny) else 1

    def plan(self) -> Plan:
        return self._plan

    def initial(self) -> Saved:
        return dict(self._initial)

    def worker(self, plan: Plan) -> RealWorker:
        return RealWorker(self._task, plan)

    def shard(self, plan: Plan, blocks: Sequence[int]) -> RealShard:
        return RealShard(plan, blocks)


class RealWorker:
    """`WorkerArithmetic` by a `WorkerEngine`."""

    def __init__(self, task: Task, plan: Plan) -> None:
        self._engine = WorkerEngine(task, plan, 1, 0, _no_clock)
        self._layout = plan.layout()

    def load(self, version: int, blocks: Blocks) -> None:
        base = self._engine.base()
        for index, values in blocks.items():
            _slice(base.flat, self._layout.blocks[index]).copy_(values)
        self._engine.arrived(version, base)

    def compute(self, update: str, span: Span, steps: int, lr: float, carry: bool) -> Result:
        outcome = self._engine.compute(update, span, steps, lr, carry, _wanted)
        made: Blocks = {}
        for block in self._layout.blocks:
            parts = self._engine.parts(update, [block.index])
            assert parts is not None, "an update that was just computed is kept"
            made[block.index] = parts[0]
        result = outcome.result
        return Result(
            blocks=made,
            nbytes={index: part.nbytes for index, part in made.items()},
            weight=outcome.weight,
            loss_sum=result.loss_sum,
            correct=float(result.correct),
            samples=result.samples,
            tokens=result.tokens,
            residual_norm=outcome.residual_norm,
            finite=result.finite,
        )

    def settle(self, update: str, carry: bool) -> None:
        self._engine.settle(update, carry)

    def drop_carry(self) -> None:
        self._engine.drop_carry()

    def reset(self) -> None:
        self._engine.reset()

    def measure(self, samples: int) -> tuple[float, int, float]:
        seen = self._engine.measure(samples)
        return seen.loss, seen.tokens, seen.accuracy


class RealShard:
    """`ShardArithmetic` by a `ShardEngine`."""

    def __init__(self, plan: Plan, blocks: Sequence[int]) -> None:
        self._blocks = sorted(blocks)
        self._engine = ShardEngine(plan.layout(), self._blocks, plan.spec.train, 1)

    @property
    def version(self) -> int:
        return self._engine.version

    def load(self, version: int, saved: Saved) -> None:
        params = {index: saved[index][_name(index)] for index in self._blocks}
        state = {name: values for index in self._blocks for name, values in saved[index].items() if name.count(".") > 1}
        self._engine.load(version, params, state)

    def stage(self, update: str, blocks: Blocks) -> tuple[bool, float]:
        parts = [blocks[index] for index in self._blocks]
        verdict = self._engine.stage(update, parts[0] if len(parts) == 1 else b"".join(parts))
        return verdict.finite, verdict.squared_norm

    def drop(self, update: str) -> None:
        self._engine.drop(update)

    def apply(self, number: int, members: Sequence[tuple[str, float]], lr: float) -> None:
        self._engine.apply(number, members, lr)

    def pin(self, version: int) -> None:
        self._engine.pin(version)

    def unpin(self, version: int) -> None:
        self._engine.unpin(version)

    def read(self, version: int) -> Blocks | None:
        try:
            return {index: self._engine.read(version, index) for index in self._blocks}
        except KeyError:
            return None

    def saved(self, version: int) -> Saved:
        """Of the current version, as in production: taken in order with the commits. Raises KeyError for others."""
        params, state = self._engine.state_for_checkpoint(version)
        found: Saved = {index: {_name(index): params[_name(index)]} for index in self._blocks}
        for name, values in state.items():
            found[int(name.split(".")[1])][name] = values
        return found


def joined(layout: Layout, saved: Saved) -> Tensor:
    """The flat fp32 vector [numel] of what all shards saved."""
    return torch.cat([saved[block.index][_name(block.index)] for block in layout.blocks])


def _name(index: int) -> str:
    return f"block.{index}"


def _slice(flat: Tensor, block: Block) -> Tensor:
    return flat[block.offset : block.offset + block.numel]
