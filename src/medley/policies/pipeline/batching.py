"""Which requests have a row in the next micro-batch: decodes first, each group its share, then parts of prompts.

Iteration-level batching (Yu et al., "Orca", OSDI 2022) with chunked prefill (Agrawal et al., "Sarathi-Serve", OSDI
2024): a long prompt costs the others one chunk's time for each of its chunks, never the whole of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

CHUNK_TOKENS = 256  # of prompts in one micro-batch
ROWS = 64
DRAFTING_ROWS = 4  # beyond so many decoding requests there are enough rows to fill a batch without drafts


@dataclass(frozen=True, slots=True)
class Ready:
    """A request that can have a row now: `backlog` positions are known and not computed (1: it decodes)."""

    request: int
    backlog: int


def compose(ready: Sequence[Ready], decoding: int, groups: int, chunk_tokens: int = CHUNK_TOKENS) -> dict[int, int]:
    """Request -> how many tokens, in order. `decoding`: of all requests, also those whose row is in flight.

    `ready` is in order of precedence. Groups get equal shares of the decodes, so that every hop has work.
    """
    share = min(ROWS, max(1, ceil(decoding / max(1, groups))))
    rows = {one.request: 1 for one in [r for r in ready if r.backlog == 1][:share]}
    room = chunk_tokens - len(rows)
    for one in ready:
        if one.backlog > 1 and room > 0 and len(rows) < ROWS:
            rows[one.request] = min(one.backlog, room)
            room -= rows[one.request]
    return rows


def groups_in_flight(hops: int, latency_ns: float, slowest_ns: float) -> int:
    """Micro-batches that fill a pipeline: as many as the slowest hop finishes while one makes the whole way."""
    if hops == 1 or slowest_ns <= 0:
        return hops
    return max(hops, min(4 * hops, ceil(latency_ns / slowest_ns)))
