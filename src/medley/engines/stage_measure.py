"""What this machine takes for one layer of a model, and for its head: real passes over random weights of its shape.

Nothing is fetched; memory for one layer and the head is needed. The best of a few passes counts: whatever else runs
can only slow one down, and the planner smooths what serving sees later.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from medley.engines.stage import StageEngine
from medley.models.random_weights import RandomTensors
from medley.models.slices import Parts, Transform
from medley.protocol.stages.words import Row

BEHIND = 256  # tokens that a decoding request has behind it
STREAMS = 8
PASSES = 4
KV_NBYTES = 8 << 30


@dataclass(frozen=True, slots=True)
class Measured:
    """Seconds: one stream, eight streams, 256 tokens of a prompt (of which the head sees one)."""

    layer_s: tuple[float, float, float]
    head_s: tuple[float, float, float]


@torch.inference_mode()
def measure(config: Any, dtype: torch.dtype, transform: Transform | None, now_ns: Callable[[], int]) -> Measured:
    """Takes about a second for a layer of a hundred megabytes. `now_ns`: a monotonic clock."""
    parts = Parts(config, dtype, transform=transform, device=torch.device("cpu"))
    weights = RandomTensors(parts.shapes(), seed=1)
    engine = StageEngine(config, dtype, KV_NBYTES, transform)
    # A layer inside, so that neither embedding nor head is drawn with it, where the model has one.
    layer = 1 if engine.layers > 2 else 0
    engine.load(weights, layer, layer + 1)
    layer_s = _layer(engine, layer, now_ns)
    del engine
    head = parts.head(weights)
    hidden = torch.zeros(STREAMS, int(config.hidden_size), dtype=dtype)
    one = _best(lambda: head(hidden[:1]), now_ns)
    return Measured(layer_s, (one, _best(lambda: head(hidden), now_ns), one))


def _layer(engine: StageEngine, layer: int, now_ns: Callable[[], int]) -> tuple[float, float, float]:
    def rows(start: int, count: int, several: int) -> Callable[[], object]:
        tokens = count * several
        given = torch.zeros(tokens, int(engine.config.hidden_size)) if layer else [1] * tokens
        asked = [Row(request, start, count, 0) for request in range(several)]
        return lambda: engine.forward(asked, given, layer, layer + 1)

    behind = min(BEHIND, int(engine.config.max_position_embeddings) - 1)
    engine.open(0)
    prefill_s = _best(rows(0, behind, 1), now_ns) * BEHIND / behind
    for request in range(1, STREAMS):
        engine.open(request, donor=0, donor_tokens=behind)
    return _best(rows(behind, 1, 1), now_ns), _best(rows(behind, 1, STREAMS), now_ns), prefill_s


def _best(call: Callable[[], object], now_ns: Callable[[], int]) -> float:
    call()  # the first one loads kernels
    seen = []
    for _ in range(PASSES):
        began = now_ns()
        call()
        seen.append(now_ns() - began)
    return max(1, min(seen)) / 1e9
