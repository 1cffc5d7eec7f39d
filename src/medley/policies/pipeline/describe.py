"""What the planner knows and what it answers: a model's bytes, machines as they were measured, links, layouts.

Plain values. Seconds and bytes are as measured or described; nothing is guessed here. A machine's `memory_nbytes`
is what Medley may use of it (free memory less a fifth), the process itself included.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Objective = Literal["latency", "throughput"]
Kind = Literal["single", "replicas", "split", "replicas of splits"]

CHUNK_TOKENS = 256  # of one prefill step; what `prefill256_s` was measured with


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Bytes of a decoder in the format it will be served in. Its layers are alike, as in all supported families."""

    name: str
    layers: int
    layer_nbytes: int
    embedding_nbytes: int
    head_nbytes: int  # final norm and head; where tied, the embedding once more
    kv_nbytes: int  # of one token in one layer
    wire_nbytes: int  # of one token's hidden state between two stages
    tied: bool = False  # one machine that holds both ends keeps the shared matrix once

    @property
    def nbytes(self) -> int:
        """All weights, on one machine."""
        return self.layers * self.layer_nbytes + self.ends_nbytes(True, True)

    def ends_nbytes(self, first: bool, last: bool) -> int:
        """What a stage holds besides its layers."""
        if first and last and self.tied:
            return max(self.embedding_nbytes, self.head_nbytes)
        return first * self.embedding_nbytes + last * self.head_nbytes


@dataclass(frozen=True, slots=True)
class Times:
    """Measured seconds of one forward pass: decoding 1 and 8 streams at once, prefilling 256 tokens."""

    batch1_s: float
    batch8_s: float
    prefill256_s: float

    def at(self, streams: int) -> float:
        """Seconds for so many streams at once: the line through the two measurements."""
        slope = (self.batch8_s - self.batch1_s) / 7
        return max(self.batch1_s, self.batch1_s + (streams - 1) * slope)

    def over(self, tokens: float) -> float:
        """Seconds for so many tokens of one pass: lines through all three measurements."""
        if tokens <= 8:
            return self.batch1_s + max(0.0, tokens - 1) / 7 * (self.batch8_s - self.batch1_s)
        return self.batch8_s + (tokens - 8) * max(0.0, self.prefill256_s - self.batch8_s) / (CHUNK_TOKENS - 8)


@dataclass(frozen=True, slots=True)
class Machine:
    """`layer`: one layer. `head`: final norm, head and sampling. Looking up an embedding takes next to no time."""

    name: str
    memory_nbytes: int
    layer: Times
    head: Times


@dataclass(frozen=True, slots=True)
class Link:
    rtt_s: float
    bandwidth_bytes_per_s: float

    def hop_s(self, nbytes: float) -> float:
        """One way, for so many bytes."""
        return self.rtt_s / 2 + nbytes / self.bandwidth_bytes_per_s


@dataclass(frozen=True, slots=True)
class Links:
    """Between two machines, in whichever order they are named; `otherwise` for pairs nobody measured."""

    otherwise: Link
    known: Mapping[tuple[str, str], Link] = field(default_factory=dict)

    def between(self, one: str, other: str) -> Link:
        return self.known.get((one, other)) or self.known.get((other, one)) or self.otherwise


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the layout is for.

    `latency`: tokens a second of one stream. `throughput`: of all streams, when there are enough to fill every stage.
    """

    objective: Objective = "latency"
    kv_tokens: int = 8 * 2048  # that each replica must be able to hold at once, prompts and answers
    streams_at_once: int = 8  # of one micro-batch; a pipeline has several micro-batches in flight
    prompt_tokens: int = 512  # for the time to the first token
    process_nbytes: int = 512 << 20  # torch and activations, before any weight
    front: str = ""  # the machine of the front end; "" for the one that holds the first layers


@dataclass(frozen=True, slots=True)
class StagePlan:
    """Layers [first, end) on a machine."""

    machine: str
    first: int
    end: int

    @property
    def layers(self) -> int:
        return self.end - self.first


@dataclass(frozen=True, slots=True)
class Layout:
    """One pipeline of stages for each replica."""

    replicas: tuple[tuple[StagePlan, ...], ...]

    @property
    def kind(self) -> Kind:
        if all(len(one) == 1 for one in self.replicas):
            return "single" if len(self.replicas) == 1 else "replicas"
        return "split" if len(self.replicas) == 1 else "replicas of splits"

    @property
    def machines(self) -> tuple[str, ...]:
        return tuple(stage.machine for one in self.replicas for stage in one)


def layout_of(counts: tuple[tuple[tuple[str, int], ...], ...]) -> Layout:
    """From (machine, number of layers) in the order of each pipeline."""
    replicas = []
    for one in counts:
        stages, first = [], 0
        for machine, layers in one:
            stages.append(StagePlan(machine, first, first + layers))
            first += layers
        replicas.append(tuple(stages))
    return Layout(tuple(replicas))


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a layout should do. Rates are tokens a second; `memory_nbytes` by machine, KV for `kv_tokens` included."""

    stream_tokens_per_s: float  # one stream alone, on the best replica
    tokens_per_s: float  # all replicas, every stage filled
    streams: int  # how many requests it takes to fill them
    first_token_s: float
    memory_nbytes: Mapping[str, int]
    slowest: str  # the stage or link that bounds `tokens_per_s`


@dataclass(frozen=True, slots=True)
class LeftOut:
    machine: str
    reason: str


@dataclass(frozen=True, slots=True)
class Alternative:
    """The best layout of another kind, and what it would do; None when there is none."""

    kind: Kind
    layout: Layout | None
    value: float  # tokens/s by the objective


@dataclass(frozen=True, slots=True)
class Plan:
    layout: Layout
    prediction: Prediction
    left_out: tuple[LeftOut, ...]
    alternatives: tuple[Alternative, ...]
