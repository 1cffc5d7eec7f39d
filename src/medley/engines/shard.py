"""The tensors of one parameter-server shard: stages updates, applies commits, keeps versions readable.

Plain and synchronous; a child process drives it from one thread. Blocks live packed in segments of about a
million elements, so that a thousand adapter blocks cost a few calls. A tensor that was handed out or pinned
is never written again: the next commit writes its successor into new memory, and the old one goes when nobody
holds it any more. So every reader has a consistent cut, and without readers everything happens in place.

Memory: parameters, optimiser state, staged payloads as received, two segments of scratch; each pinned older
version costs its parameters. A checkpoint costs nothing until the next commit, then a copy of parameters and
state for as long as its writer holds them; a writer that lets go of each tensor once written keeps that
small.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, pairwise
from math import isfinite

import torch
from torch import Tensor

from medley.aggregation import make_rule
from medley.aggregation.rule import Member
from medley.compression import make_codec
from medley.compression.codec import NonFinite, Payload
from medley.engines.optimizers import Step, decays, make_shard_optimizer
from medley.protocol.errors import FrameError
from medley.protocol.layout import Block, Layout
from medley.protocol.spec import Train

_Merged = tuple[str, float, memoryview]  # update id, weight, payload

SEGMENT = 1 << 20  # elements; a block that is larger has a segment of its own


@dataclass(frozen=True, slots=True)
class Staged:
    """What a shard says about a part. One that is not finite has squared norm 0 and can only be dropped."""

    update_id: str
    finite: bool
    squared_norm: float
    nbytes: int


@dataclass(slots=True)
class _Part:
    verdict: Staged
    payload: memoryview


@dataclass(slots=True)
class _Segment:
    """Blocks packed one after the other. `*_lent`: others may hold these tensors, so they are not written."""

    blocks: tuple[Block, ...]
    decay: bool
    steps: int
    params: Tensor
    state: dict[str, Tensor]
    params_lent: bool = False
    state_lent: bool = False

    def slices(self) -> Iterator[tuple[Block, slice]]:
        bounds = pairwise(accumulate((b.numel for b in self.blocks), initial=0))
        return ((block, slice(*ends)) for block, ends in zip(self.blocks, bounds, strict=True))


@dataclass(slots=True)
class _Pin:
    holders: int
    params: list[Tensor]


class ShardEngine:
    """`owned` are block indices of `layout`; everything else about the arithmetic is in `train`.

    After an exception other than those documented (out of memory) the engine is torn: let its process die.
    """

    version: int  # commits applied; -1 until `load`

    def __init__(self, layout: Layout, owned: Sequence[int], train: Train, threads: int = 0) -> None:
        if threads:
            torch.set_num_threads(threads)
        self.version = -1
        self._layout = layout
        self._blocks = tuple(layout.blocks[index] for index in sorted(set(owned)))
        self._codec = make_codec(train.compression)
        self._rule = make_rule(train.aggregation)
        self._optimizer = make_shard_optimizer(train)
        self._outer_lr = train.outer.lr if train.sync.mode == "local-sgd" and train.outer.kind != "none" else 1.0
        sizes = [self._codec.nbytes(b.numel) for b in self._blocks]
        ends = pairwise(accumulate(sizes, initial=0))
        self._where = {b.index: slice(*bounds) for b, bounds in zip(self._blocks, ends, strict=True)}
        self._nbytes = sum(sizes)
        self._segments: list[_Segment] = []
        self._home: dict[int, tuple[int, slice]] = {}
        self._staged: dict[str, _Part] = {}
        self._pins: dict[int, _Pin] = {}
        self._rooms = tuple(torch.empty(self._widest()) for _ in range(2))

    # -- parameters come in and go out -----------------------------------------

    def load(self, version: int, params: Mapping[int, Tensor], state: Mapping[str, Tensor]) -> None:
        """Begin at `version`, forgetting all else: `params` by block index, `state` as in a checkpoint.

        Other shards' entries are ignored. Without optimiser state only version 0 can be loaded. Raises
        ValueError for a block that is missing or of the wrong size or type, before anything changes.
        """
        segments = [self._segment(version, key, blocks, params, state) for key, blocks in self._packing(version, state)]
        self._segments = segments
        self._home = {b.index: (i, s) for i, segment in enumerate(segments) for b, s in segment.slices()}
        self._staged.clear()
        self._pins.clear()
        self.version = version

    def pin(self, version: int) -> None:
        """Keep the current version readable, or one that is pinned already; each `pin` wants its `unpin`.

        Raises KeyError for a version that is gone.
        """
        if version in self._pins:
            self._pins[version].holders += 1
            return
        self._check_current(version)
        for segment in self._segments:
            segment.params_lent = True
        self._pins[version] = _Pin(1, [segment.params for segment in self._segments])

    def unpin(self, version: int) -> None:
        """Undo one `pin`; nothing happens for a version that is not pinned (a rollback forgets pins)."""
        if (pin := self._pins.get(version)) is None:
            return
        pin.holders -= 1
        if pin.holders == 0:
            del self._pins[version]

    def read(self, version: int, block: int) -> Tensor:
        """fp32 [numel] of an owned block, at a pinned or the current version. Hold it; never write to it.

        Raises KeyError when the version is gone or the block is not of this shard.
        """
        home, where = self._home[block]
        if version in self._pins:
            return self._pins[version].params[home][where]
        self._check_current(version)
        self._segments[home].params_lent = True
        return self._segments[home].params[where]

    def state_for_checkpoint(self, version: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Parameters as `block.<index>`; state as `block.<index>.<slot>` and `.step`: one consistent cut.

        Of the current version only (KeyError); the tensors stay as they are whatever is applied while they
        are written.
        """
        self._check_current(version)
        params: dict[str, Tensor] = {}
        state: dict[str, Tensor] = {}
        for segment in self._segments:
            segment.params_lent = segment.state_lent = True
            for block, where in segment.slices():
                name = f"block.{block.index}"
                params[name] = segment.params[where]
                state[f"{name}.step"] = torch.tensor(segment.steps)
                state.update({f"{name}.{slot}": values[where] for slot, values in segment.state.items()})
        return params, state

    # -- updates ---------------------------------------------------------------

    def part_nbytes(self) -> dict[int, int]:
        """Exact payload bytes by owned block, in the order in which a part joins them."""
        return {index: where.stop - where.start for index, where in self._where.items()}

    def stage(self, update_id: str, payload: Payload) -> Staged:
        """Check one update's part and keep it as received, uncopied: the caller must not write to it again.

        `payload` is the encoded owned blocks, joined in rising order of their index. A known id is answered
        as before. Raises FrameError for a part that is not what the codec writes; then nothing is kept.
        """
        if update_id in self._staged:
            return self._staged[update_id].verdict
        view = memoryview(payload)
        if view.nbytes != self._nbytes:
            raise FrameError(f"update {update_id}: {view.nbytes} bytes where {self._nbytes} were expected")
        view = view.cast("B")
        verdict = self._inspect(update_id, view)
        self._staged[update_id] = _Part(verdict, view if verdict.finite else memoryview(b""))
        return verdict

    def drop(self, update_id: str) -> None:
        """Free a staged part; nothing happens when there is none."""
        self._staged.pop(update_id, None)

    def apply(self, number: int, members: Sequence[tuple[str, float]], lr: float) -> None:
        """Make version `number` of these staged updates, (update id, weight) in commit order, and free them.

        In local-sgd the rate is the outer optimiser's own times `lr`, which the coordinator makes less than 1 for
        a commit that should count less. Raises ValueError, before anything changes, when `number` is not the next
        version, or a member is absent, doubled or not finite.
        """
        merged = self._members(number, members)
        rate = lr * self._outer_lr
        for segment in self._segments:
            self._advance(segment, merged, rate)
        for update_id, _ in members:
            del self._staged[update_id]
        self.version = number

    def memory_nbytes(self) -> dict[str, int]:
        """Bytes held, by what for. `pinned` counts tensors of older versions only, each once."""
        current = {segment.params.data_ptr() for segment in self._segments}
        old = {t.data_ptr(): t.nbytes for pin in self._pins.values() for t in pin.params}
        return {
            "params": sum(segment.params.nbytes for segment in self._segments),
            "state": sum(t.nbytes for segment in self._segments for t in segment.state.values()),
            "staged": sum(part.payload.nbytes for part in self._staged.values()),
            "pinned": sum(nbytes for where, nbytes in old.items() if where not in current),
            "scratch": sum(room.nbytes for room in self._rooms),
        }

    # -- how -------------------------------------------------------------------

    def _check_current(self, version: int) -> None:
        if version != self.version or version < 0:
            raise KeyError(f"version {version} is gone; this shard is at {self.version}")

    def _widest(self) -> int:
        largest = max((b.numel for b in self._blocks), default=0)
        return max(largest, min(SEGMENT, sum(b.numel for b in self._blocks)))

    def _packing(self, version: int, state: Mapping[str, Tensor]) -> Iterator[tuple[tuple[bool, int], list[Block]]]:
        """Blocks that can step together (same decay, same count of steps), filled into segments."""
        alike: defaultdict[tuple[bool, int], list[Block]] = defaultdict(list)
        for block in self._blocks:
            key = decays(self._layout.tensors[block.tensor]), self._steps(version, block, state)
            alike[key].append(block)
        for key, blocks in alike.items():
            for packed in _filled(blocks):
                yield key, packed

    def _steps(self, version: int, block: Block, state: Mapping[str, Tensor]) -> int:
        step = state.get(f"block.{block.index}.step")
        if step is None and version > 0 and self._optimizer.slots:
            raise ValueError(f"block {block.index}: no step to load")
        return 0 if step is None else int(step)

    def _segment(
        self,
        version: int,
        key: tuple[bool, int],
        blocks: Sequence[Block],
        params: Mapping[int, Tensor],
        state: Mapping[str, Tensor],
    ) -> _Segment:
        joined = torch.cat([_sized(params.get(b.index), b, "parameters") for b in blocks])
        decay, steps = key
        slots: dict[str, Tensor] = {}
        for slot in self._optimizer.slots:
            found = [state.get(f"block.{b.index}.{slot}") for b in blocks]
            if version == 0 and all(t is None for t in found):
                slots[slot] = torch.zeros_like(joined)
            else:
                slots[slot] = torch.cat([_sized(t, b, slot) for t, b in zip(found, blocks, strict=True)])
        return _Segment(tuple(blocks), decay, steps, joined, slots)

    def _inspect(self, update_id: str, payload: memoryview) -> Staged:
        total = 0.0
        for block in self._blocks:
            room = self._rooms[0][: block.numel]
            try:
                values = self._codec.decode(payload[self._where[block.index]], block.numel, out=room)
            except NonFinite:
                total = float("nan")
            else:
                total += float(torch.linalg.vector_norm(values, dtype=torch.float64)) ** 2
        finite = isfinite(total)
        return Staged(update_id, finite, total if finite else 0.0, payload.nbytes)

    def _members(self, number: int, members: Sequence[tuple[str, float]]) -> list[_Merged]:
        if self.version < 0 or number != self.version + 1:
            raise ValueError(f"commit {number} does not follow version {self.version}")
        names = [update_id for update_id, _ in members]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"commit {number} needs at least one member, and each once: {names}")
        for update_id in names:
            if update_id not in self._staged:
                raise ValueError(f"commit {number}: update {update_id} is not staged")
            if not self._staged[update_id].verdict.finite:
                raise ValueError(f"commit {number}: update {update_id} is not finite")
        return [(update_id, weight, self._staged[update_id].payload) for update_id, weight in members]

    def _advance(self, segment: _Segment, merged: Sequence[_Merged], lr: float) -> None:
        update, room = (r[: segment.params.numel()] for r in self._rooms)
        members = [Member(u, weight, partial(self._decode, segment, payload)) for u, weight, payload in merged]
        self._rule.combine(members, update, room)
        if segment.state_lent:
            segment.state = {slot: values.clone() for slot, values in segment.state.items()}
        out = torch.empty_like(segment.params) if segment.params_lent else segment.params
        number = segment.steps + 1
        self._optimizer.step(Step(segment.params, update, segment.state, room, out, number, lr, segment.decay))
        segment.params, segment.steps = out, number
        segment.params_lent = segment.state_lent = False

    def _decode(self, segment: _Segment, payload: memoryview, out: Tensor) -> Tensor:
        for block, where in segment.slices():
            self._codec.decode(payload[self._where[block.index]], block.numel, out=out[where])
        return out


def _filled(blocks: Sequence[Block]) -> Iterator[list[Block]]:
    """Runs of blocks of at most SEGMENT elements together, or of one larger block."""
    packed: list[Block] = []
    for block in blocks:
        if packed and sum(b.numel for b in packed) + block.numel > SEGMENT:
            yield packed
            packed = []
        packed.append(block)
    yield packed


def _sized(values: Tensor | None, block: Block, what: str) -> Tensor:
    if values is None:
        raise ValueError(f"block {block.index}: no {what} to load")
    if values.dtype != torch.float32 or values.numel() != block.numel:
        raise ValueError(f"block {block.index}: {what} are {values.dtype} [{values.numel()}], not fp32 [{block.numel}]")
    return values.detach().reshape(-1)
