"""A worker's tensors: the base it starts from, updates that wait for their fate, the carry, the residual.

Everything here is synchronous and speaks bytes to the outside: a host moves them. Parts of an update are kept
until the update is settled; what the shards will have seen of a refused one becomes the carry, which the next
update takes along once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from medley.compression import make_codec
from medley.compression.codec import bytes_of
from medley.compression.feedback import ErrorFeedback, decode_update, encode_update
from medley.engines.memory import is_out_of_memory
from medley.engines.task import Task
from medley.engines.train import Evaluation, Result, Stopped, TrainEngine, Work
from medley.protocol.errors import UserError
from medley.protocol.layout import Layout
from medley.protocol.messages import Span
from medley.protocol.plan import Plan

__all__ = ["Base", "WorkerEngine", "is_out_of_memory"]


@dataclass(slots=True)
class Kept:
    """One computed update, encoded, by block."""

    payloads: dict[int, torch.Tensor]
    weight: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was computed; `weight` includes a carry's, `residual_norm` is what the codec still owes."""

    result: Result
    weight: float
    residual_norm: float


class Base:
    """One version on its way in, filled shard by shard.

    A network that computes in bf16 and takes one step rounds its base anyway, so then bf16 travels: the same
    numbers for half the bytes.
    """

    def __init__(self, layout: Layout, half: bool) -> None:
        self._layout = layout
        self.flat = torch.empty(layout.numel, dtype=torch.bfloat16 if half else torch.float32)

    def room(self, blocks: Sequence[int]) -> torch.Tensor:
        """A buffer for these blocks, joined in rising order."""
        return torch.empty(sum(self._layout.blocks[i].numel for i in blocks), dtype=self.flat.dtype)

    def take(self, blocks: Sequence[int], room: torch.Tensor) -> None:
        """Put a filled buffer where its blocks belong."""
        offset = 0
        for index in sorted(blocks):
            block = self._layout.blocks[index]
            self.flat[block.offset : block.offset + block.numel] = room[offset : offset + block.numel]
            offset += block.numel


def bytes_in(room: torch.Tensor) -> memoryview:
    """The writable bytes of a buffer."""
    return memoryview(room.view(torch.uint8).numpy().data)


class WorkerEngine:
    """A training engine and everything a worker keeps between leases. One call at a time."""

    def __init__(self, task: Task, plan: Plan, threads: int, micro_batch: int, now_ns: Callable[[], int]) -> None:
        """Raises UserError when this machine builds another model than was planned."""
        train = plan.spec.train
        dtype = getattr(task, "dtype", torch.float32)
        self._train = TrainEngine(task, train, plan.spec.placement, dtype, now_ns)
        if threads and not train.threads and not train.deterministic:  # its sums must not depend on the machine
            torch.set_num_threads(threads)
        if micro_batch:
            self._train.micro_batch = min(self._train.micro_batch, micro_batch)
        self._layout = plan.layout()
        if self._train.layout.fingerprint != self._layout.fingerprint:
            raise UserError(
                "this machine builds another model than the coordinator planned; install the same versions of medley "
                "and transformers, and the same task, on all machines"
            )
        self._means = train.sync.mode == "local-sgd"
        self.half = dtype is torch.bfloat16 and not self._means
        self._codec = make_codec(train.compression)
        feeds = train.compression.kind != "none" and train.compression.feedback
        self._feedback = ErrorFeedback(self._layout.numel, train.compression.decay) if feeds else None
        self._base: torch.Tensor | None = None
        self._kept: dict[str, Kept] = {}
        self._carry: torch.Tensor | None = None
        self._carry_weight = 0.0
        self.version = -1

    @property
    def micro_batch(self) -> int:
        """Rows computed at once, as far as is known now."""
        return self._train.micro_batch

    def reset(self) -> None:
        """A rollback: whatever was computed or owed is meaningless."""
        self._kept.clear()
        self.drop_carry()
        self.version = -1
        if self._feedback is not None:
            self._feedback.zero()

    def base(self) -> Base:
        """A spare base to be filled while the present one is used."""
        return Base(self._layout, self.half)

    def arrived(self, version: int, base: Base) -> None:
        self._base, self.version = base.flat, version

    def prefetch(self, span: Span, steps: int) -> None:
        self._train.prefetch(_work(span, steps))

    def compute(
        self, update: str, span: Span, steps: int, lr: float, carry: bool, futile: Callable[[], bool]
    ) -> Outcome:
        """One update from the base that arrived last.

        `futile` is asked before each micro-batch; once it says yes, the work ends with `Stopped` and nothing stays of
        it, nor of the carry it took.
        """
        assert self._base is not None, "a base arrives before work"
        self._train.load_base(self.version, self._base)
        try:
            result = self._train.run(_work(span, steps), lr, futile)
        except Stopped:
            if carry:
                self.drop_carry()
            raise
        weight = self._with_carry(result) if carry and self._carry is not None else result.weight
        payloads = encode_update(result.update, self._layout.blocks, self._codec, self._feedback)
        self._kept[update] = Kept(payloads, weight)
        return Outcome(result, weight, self._feedback.norm() if self._feedback is not None else 0.0)

    def _with_carry(self, result: Result) -> float:
        """Join the carry to a fresh update; the weight of both. Gradients are sums, so they add; differences of
        local-sgd are means, so each counts by its weight.
        """
        assert self._carry is not None
        total = result.weight + self._carry_weight
        if self._means and total > 0:
            result.update.mul_(result.weight / total).add_(self._carry, alpha=self._carry_weight / total)
        else:
            result.update.add_(self._carry)
        self.drop_carry()
        return total

    def measure(self, samples: int) -> Evaluation:
        """Held-out loss of the base that arrived last."""
        assert self._base is not None, "a base arrives before a measurement"
        self._train.load_base(self.version, self._base)
        return self._train.evaluate(samples)

    def parts(self, update: str, blocks: Sequence[int]) -> list[memoryview] | None:
        """One shard's part of a kept update, in rising block index; None when it is settled."""
        kept = self._kept.get(update)
        return None if kept is None else [bytes_of(kept.payloads[i]) for i in sorted(blocks)]

    def settle(self, update: str, carry: bool) -> None:
        """Free an update; as a carry, keep what the shards saw of it."""
        kept = self._kept.pop(update, None)
        if kept is None or not carry:
            return
        seen = torch.empty(self._layout.numel, dtype=torch.float32)
        payloads = {i: bytes_of(p) for i, p in kept.payloads.items()}
        self._carry = decode_update(payloads, self._layout.blocks, self._codec, seen)
        self._carry_weight = kept.weight

    def drop_carry(self) -> None:
        self._carry, self._carry_weight = None, 0.0


def _work(span: Span, steps: int) -> Work:
    return Work(((span.epoch, span.start, span.stop),), steps)
