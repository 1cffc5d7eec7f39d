"""A front as people see it: stages, layers, rates, queues, memory; one plain JSON object."""

from __future__ import annotations

import itertools
from typing import Any

from medley.policies.pipeline.describe import Link
from medley.protocol.ids import NS_PER_S
from medley.protocol.stages.words import Hop
from medley.roles.front.front import Front
from medley.roles.front.machines import MachineView
from medley.roles.front.pipeline import Pipeline


def shown(front: Front, tokens_per_s: float) -> dict[str, Any]:
    machines = front.layouts.machines.known
    return {
        "model": front.options.shape.name,
        "serving": front.serving,
        "reason": front.layouts.reason,
        "tokens_per_s": round(tokens_per_s, 2),
        "waiting": len(front.waiting) + sum(len(p.queue) for p in front.pipelines),
        "pipelines": [_pipeline(p, front) for p in front.pipelines],
        "machines": [_machine(machines[name]) for name in sorted(machines)],
    }


def _pipeline(pipeline: Pipeline, front: Front) -> dict[str, Any]:
    held = {part: node for (name, part), node in front.layouts.reserved.items() if name == pipeline.name}
    spent = pipeline.pace.spent_ns if len(pipeline.pace.spent_ns) == len(pipeline.hops) else [0.0] * len(pipeline.hops)
    latency_s = pipeline.patience.latency_ns / NS_PER_S
    distances = front.layouts.distances
    return {
        "name": pipeline.name,
        "state": pipeline.state,
        "generation": pipeline.generation,
        "requests": len(pipeline.requests),
        "queue": len(pipeline.queue),
        "in_flight": len(pipeline.flying),
        "tokens": pipeline.emitted,
        "recomputed": pipeline.recomputed,
        "drafts": {
            source: {"tokens": tokens, "right": pipeline.accepted[source]}
            for source, tokens in sorted(pipeline.drafted.items())
        },
        "latency_s": round(latency_s, 5),
        "link_s": round(max(0.0, latency_s - sum(spent) / NS_PER_S), 5),
        "hops": [
            _hop(hop, spent[hop.place], next((n for p, n in held.items() if (p.machine, p.first) == _key(hop)), ""))
            for hop in pipeline.hops
        ],
        "links": [_link(distances.between(a.node, b.node)) for a, b in itertools.pairwise(pipeline.hops)],
    }


def _link(link: Link | None) -> dict[str, Any] | None:
    """From one hop to the next, where it was measured."""
    if link is None:
        return None
    return {"rtt_s": round(link.rtt_s, 6), "bytes_per_s": round(link.bandwidth_bytes_per_s)}


def _key(hop: Hop) -> tuple[str, int]:
    return hop.node, hop.first


def _hop(hop: Hop, spent_ns: float, reserve: str) -> dict[str, Any]:
    return {
        "machine": hop.node,
        "first": hop.first,
        "end": hop.end,
        "pass_s": round(spent_ns / NS_PER_S, 5),
        "reserve": reserve,
    }


def _machine(view: MachineView) -> dict[str, Any]:
    status = view.status
    return {
        "name": view.node,
        "up": view.up,
        "layers": sorted(view.loaded),
        "suspicions": view.suspicions,
        "draining": view.draining,
        "slowness": round(view.slowness, 2),
        "busy": round(status.busy, 3) if status else 0.0,
        "queue": status.queue if status else 0,
        "requests": status.requests if status else 0,
        "kv_nbytes": status.kv_nbytes if status else 0,
        "memory_nbytes": status.memory_nbytes if status else 0,
        "shadow_nbytes": status.shadow_nbytes if status else 0,
    }
