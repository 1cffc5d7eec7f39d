"""The planner's figures by number instead of by name: what a machine holds and takes in each place of a pipeline.

Built once a plan. Places: a machine may be first (embedding), last (norm, head, sampling), both or neither.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from medley.policies.pipeline.describe import Links, Machine, ModelShape, Wanted

Matrix = tuple[tuple[float, ...], ...]


@dataclass(frozen=True, slots=True)
class Ground:
    """`caps[i][first][last]`: layers that fit. `hop_s`: one stream's token, one way. `transfer_s`: of a micro-batch."""

    model: ModelShape
    machines: tuple[Machine, ...]
    wanted: Wanted
    links: Links
    caps: tuple[tuple[tuple[int, int], tuple[int, int]], ...]
    decode_s: tuple[float, ...]  # one layer, one stream
    head_s: tuple[float, ...]
    batch_s: tuple[float, ...]  # one layer, a micro-batch
    batch_head_s: tuple[float, ...]
    hop_s: Matrix
    transfer_s: Matrix
    to_front_s: Matrix  # [last][first]: the token's way from the last stage to the front end
    from_front_s: tuple[float, ...]  # the token's way from the front end to the first stage

    def cap(self, i: int, first: bool, last: bool) -> int:
        return self.caps[i][first][last]

    def names(self, members: Sequence[int]) -> list[str]:
        return [self.machines[i].name for i in members]


def ground(model: ModelShape, machines: Sequence[Machine], links: Links, wanted: Wanted) -> Ground:
    """All tables for these machines, in their order."""
    several = wanted.streams_at_once
    names = [m.name for m in machines]

    def hop(one: str, other: str) -> float:
        return 0.0 if one == other else links.between(one, other).hop_s(model.wire_nbytes)

    def transfer(one: str, other: str) -> float:
        nbytes = several * model.wire_nbytes
        return 0.0 if one == other else nbytes / links.between(one, other).bandwidth_bytes_per_s

    def back(last: str, first: str) -> float:
        front = wanted.front or first
        return 0.0 if last == front else links.between(last, front).rtt_s / 2

    def into(first: str) -> float:
        return 0.0 if wanted.front in ("", first) else links.between(wanted.front, first).rtt_s / 2

    return Ground(
        model,
        tuple(machines),
        wanted,
        links,
        tuple(_caps(model, m, wanted) for m in machines),
        tuple(m.layer.at(1) for m in machines),
        tuple(m.head.at(1) for m in machines),
        tuple(m.layer.at(several) for m in machines),
        tuple(m.head.at(several) for m in machines),
        tuple(tuple(hop(a, b) for b in names) for a in names),
        tuple(tuple(transfer(a, b) for b in names) for a in names),
        tuple(tuple(back(a, b) for b in names) for a in names),
        tuple(into(a) for a in names),
    )


def stage_nbytes(model: ModelShape, wanted: Wanted, layers: int, first: bool, last: bool) -> int:
    """Memory of a stage's process: itself, its weights, and KV of its layers for `kv_tokens`."""
    layer = model.layer_nbytes + wanted.kv_tokens * model.kv_nbytes
    return wanted.process_nbytes + model.ends_nbytes(first, last) + layers * layer


def _caps(model: ModelShape, machine: Machine, wanted: Wanted) -> tuple[tuple[int, int], tuple[int, int]]:
    def cap(first: bool, last: bool) -> int:
        room = machine.memory_nbytes - stage_nbytes(model, wanted, 0, first, last)
        each = model.layer_nbytes + wanted.kv_tokens * model.kv_nbytes
        return min(model.layers, max(0, room // each))

    return (cap(False, False), cap(False, True)), (cap(True, False), cap(True, True))
