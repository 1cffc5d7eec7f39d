"""What a layout should do: tokens a second, time to the first token, memory. The cost model, in one place.

Stage i with n layers takes s_i(B) = n * layer(B) (+ head(B) on the last). One stream: 1 / (sum of s_i(1) + hops). All
stages filled: B / max(s_i(B), link_ij(B)) with M = ceil((sum of s_i(B) + hops) / max) micro-batches of B in flight.
A prompt of P chunks: (sum of prefill_i + hops) + (P - 1) * max prefill_i, as chunks follow each other.
"""

from __future__ import annotations

import itertools
from math import ceil

from medley.policies.pipeline.describe import CHUNK_TOKENS, Layout, Prediction, StagePlan, Times
from medley.policies.pipeline.ground import Ground, stage_nbytes

Pipeline = tuple[StagePlan, ...]


def predict(ground: Ground, layout: Layout) -> Prediction:
    """For a layout of these machines; it need not fit, nor come from the planner."""
    number = {m.name: i for i, m in enumerate(ground.machines)}
    ends = [(_number(number, one), one) for one in layout.replicas]
    alone = [1 / _token_s(ground, n, one) for n, one in ends]
    filled = [_filled(ground, n, one) for n, one in ends]
    slowest = min(range(len(filled)), key=lambda k: filled[k][0])
    return Prediction(
        stream_tokens_per_s=max(alone),
        tokens_per_s=sum(rate for rate, _, _ in filled),
        streams=sum(streams for _, streams, _ in filled),
        first_token_s=min(_first_token_s(ground, n, one) for n, one in ends),
        memory_nbytes={
            stage.machine: stage_nbytes(
                ground.model, ground.wanted, stage.layers, stage.first == 0, stage.end == ground.model.layers
            )
            for one in layout.replicas
            for stage in one
        },
        slowest=filled[slowest][2],
    )


def _number(number: dict[str, int], pipeline: Pipeline) -> list[int]:
    return [number[stage.machine] for stage in pipeline]


def _token_s(ground: Ground, members: list[int], pipeline: Pipeline) -> float:
    stages = sum(stage.layers * ground.decode_s[i] for i, stage in zip(members, pipeline, strict=True))
    return stages + ground.head_s[members[-1]] + _hops_s(ground, members)


def _hops_s(ground: Ground, members: list[int]) -> float:
    between = sum(ground.hop_s[a][b] for a, b in itertools.pairwise(members))
    return between + ground.from_front_s[members[0]] + ground.to_front_s[members[-1]][members[0]]


def _filled(ground: Ground, members: list[int], pipeline: Pipeline) -> tuple[float, int, str]:
    """(tokens a second, streams that fill it, what bounds it)."""
    several = ground.wanted.streams_at_once
    steps = [(stage.layers * ground.batch_s[i], stage.machine) for i, stage in zip(members, pipeline, strict=True)]
    steps[-1] = (steps[-1][0] + ground.batch_head_s[members[-1]], steps[-1][1])
    links = [
        (ground.transfer_s[a][b], f"the link {ground.machines[a].name} to {ground.machines[b].name}")
        for a, b in itertools.pairwise(members)
    ]
    bound, what = max([*steps, *links])
    groups = ceil((sum(s for s, _ in steps) + sum(t for t, _ in links) + _hops_s(ground, members)) / bound - 1e-9)
    return several / bound, several * groups, what


def _first_token_s(ground: Ground, members: list[int], pipeline: Pipeline) -> float:
    """Chunks of 256 tokens; the last, shorter one is charged by its share."""
    machines = [ground.machines[i] for i in members]
    passes = ground.wanted.prompt_tokens / CHUNK_TOKENS
    stages = [_prefill_s(m.layer, stage.layers) for m, stage in zip(machines, pipeline, strict=True)]
    nbytes = min(ground.wanted.prompt_tokens, CHUNK_TOKENS) * ground.model.wire_nbytes
    hops = sum(ground.links.between(a.name, b.name).hop_s(nbytes) for a, b in itertools.pairwise(machines))
    ends = ground.from_front_s[members[0]] + ground.to_front_s[members[-1]][members[0]] + ground.head_s[members[-1]]
    return min(passes, 1.0) * sum(stages) + max(0.0, passes - 1) * max(stages) + hops + ends


def _prefill_s(layer: Times, layers: int) -> float:
    return layers * layer.prefill256_s
