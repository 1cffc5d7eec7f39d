"""What this machine takes for one layer of a model, and for its head: real passes over random weights of its shape.

Nothing is fetched; memory for one layer and the head is needed. The best of a few passes counts: whatever else runs
can only slow one down, and the planner smooths what serving sees later.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from medley.engines.stage import Row, StageEngine
from medley.engines.stage_cache import RAGGED
from medley.models.slices import Span, Transform, random_slice

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
    layers = int(config.num_hidden_layers)
    inner = Span(1, 2, layers) if layers > 2 else Span(0, 1, layers)
    engine = StageEngine(random_slice(config, inner, dtype, 1, RAGGED, transform), KV_NBYTES)
    layer_s = _layer(engine, now_ns)
    del engine
    head = random_slice(config, Span(layers - 1, layers, layers), dtype, 1, RAGGED, transform)
    hidden = torch.zeros(STREAMS, int(config.hidden_size), dtype=dtype)
    one = _best(lambda: head.logits(hidden[:1]), now_ns)
    return Measured(layer_s, (one, _best(lambda: head.logits(hidden), now_ns), one))


def _layer(engine: StageEngine, now_ns: Callable[[], int]) -> tuple[float, float, float]:
    names = [str(number) for number in range(STREAMS)]

    def rows(start: int, count: int, several: int) -> Callable[[], object]:
        tokens = count * several
        given = [1] * tokens if engine.span.embeds else torch.zeros(tokens, int(engine.sliced.config.hidden_size))
        return lambda: engine.forward([Row(name, start, count) for name in names[:several]], given)

    behind = min(BEHIND, int(engine.sliced.config.max_position_embeddings) - 1)
    for name in names:
        engine.open(name)
    for name in names[1:]:
        engine.import_kv(name, range(engine.span.first, engine.span.end), 0, _zeros(engine, behind))
    prefill_s = _best(rows(0, behind, 1), now_ns) * BEHIND / behind
    return _best(rows(behind, 1, 1), now_ns), _best(rows(behind, 1, STREAMS), now_ns), prefill_s


def _zeros(engine: StageEngine, tokens: int) -> torch.Tensor:
    none = engine.export_kv("0", range(engine.span.first, engine.span.end), 0, 0)
    return torch.zeros(1, 2, none.shape[2], tokens, none.shape[4], dtype=none.dtype)


def _best(call: Callable[[], object], now_ns: Callable[[], int]) -> float:
    call()  # the first one loads kernels
    seen = []
    for _ in range(PASSES):
        began = now_ns()
        call()
        seen.append(now_ns() - began)
    return max(1, min(seen)) / 1e9
