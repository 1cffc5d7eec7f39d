"""What a pool serves, in the page's own words (docs/page.md): from what a front noted to rows of stages.

A note that this version cannot read shows as its serving without pipelines, and a sentence; it breaks nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import msgspec

from medley.serving.offers import Offer, offers

DECISIONS = 8
UNREADABLE = "its front end is of another version: 'medley serve --watch' there shows what it does"

Shown = dict[str, Any]


@dataclass(frozen=True, slots=True)
class NotedHop:
    machine: str
    first: int
    end: int
    pass_s: float = 0.0
    reserve: str = ""


@dataclass(frozen=True, slots=True)
class NotedLink:
    rtt_s: float
    bytes_per_s: float


@dataclass(frozen=True, slots=True)
class NotedPipeline:
    name: str
    state: str
    generation: int
    hops: tuple[NotedHop, ...]
    requests: int = 0
    queue: int = 0
    in_flight: int = 0
    recomputed: int = 0
    latency_s: float = 0.0
    link_s: float = 0.0
    links: tuple[NotedLink | None, ...] = ()  # from each stage to the next, where it was measured


@dataclass(frozen=True, slots=True)
class NotedMachine:
    name: str
    up: bool = True
    draining: bool = False
    layers: tuple[int, ...] = ()
    busy: float = 0.0
    queue: int = 0
    kv_nbytes: int = 0
    memory_nbytes: int = 0


@dataclass(frozen=True, slots=True)
class NotedDecision:
    wall_s: float
    subject: str
    text: str


@dataclass(frozen=True, slots=True)
class NotedOffer:
    url: str = ""
    keyed: bool = False


@dataclass(frozen=True, slots=True)
class Note:
    """As `serving.shown` and the front's host write it; fields that the page does not show are left out."""

    serving: bool = False
    reason: str = ""
    tokens_per_s: float = 0.0
    waiting: int = 0
    offer: NotedOffer = NotedOffer()
    pipelines: tuple[NotedPipeline, ...] = ()
    machines: tuple[NotedMachine, ...] = ()
    decisions: tuple[NotedDecision, ...] = ()


def served(serving: Mapping[str, Any]) -> Shown:
    """One serving of the answer to `servings`, whose note is a plain JSON object or None."""
    try:
        note = msgspec.convert(serving.get("note") or {}, Note)
    except msgspec.ValidationError:
        note = Note(reason=UNREADABLE)
    machines = {machine.name: machine for machine in note.machines}
    busy = {hop.machine for pipeline in note.pipelines for hop in pipeline.hops}
    return {
        "id": serving["job"],
        "name": serving["name"],
        "state": "serving" if note.serving else "waiting",
        "reason": note.reason or serving.get("reason", ""),
        "tokens_per_s": note.tokens_per_s,
        "waiting": note.waiting,
        "url": note.offer.url,
        "keyed": note.offer.keyed,
        "pipelines": [_pipeline(pipeline, machines) for pipeline in note.pipelines],
        "spare": [{"name": m.name, "state": _spare(m)} for m in note.machines if m.name not in busy],
        "decisions": [_decision(one) for one in note.decisions[-DECISIONS:]],
    }


def askable(servings: Iterable[Mapping[str, Any]]) -> list[Offer]:
    """Whom the page's server may pass a question on to: whom any program of this machine may ask as well."""
    return [offer for offer in offers(servings) if offer.open_here]


def _pipeline(pipeline: NotedPipeline, machines: Mapping[str, NotedMachine]) -> Shown:
    return {
        "name": pipeline.name,
        "state": pipeline.state,
        "generation": pipeline.generation,
        "requests": pipeline.requests,
        "queue": pipeline.queue,
        "in_flight": pipeline.in_flight,
        "recomputed": pipeline.recomputed,
        "latency_s": pipeline.latency_s,
        "link_s": pipeline.link_s,
        "stages": [
            _stage(hop, machines.get(hop.machine, NotedMachine(hop.machine)), link)
            for hop, link in zip_longest(pipeline.hops, pipeline.links[: len(pipeline.hops)])
        ],
    }


def _stage(hop: NotedHop, machine: NotedMachine, link: NotedLink | None) -> Shown:
    return {
        "machine": hop.machine,
        "first": hop.first,
        "last": hop.end - 1,
        "pass_s": hop.pass_s,
        "busy": machine.busy,
        "queue": machine.queue,
        "kv_nbytes": machine.kv_nbytes,
        "memory_nbytes": machine.memory_nbytes,
        "reserve": hop.reserve,
        "rtt_s": link.rtt_s if link else None,
        "bytes_per_s": link.bytes_per_s if link else None,
    }


def _spare(machine: NotedMachine) -> str:
    if not machine.up:
        return "away"
    if machine.draining:
        return "leaving"
    return f"holds layers {machine.layers[0]}-{machine.layers[-1]}" if machine.layers else "holds nothing"


def _decision(decision: NotedDecision) -> Shown:
    return {
        "at_ms": int(1000 * decision.wall_s),
        "subject": decision.subject,
        "decision": decision.text,
        "reason": "",
    }
