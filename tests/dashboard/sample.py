"""A feed of sample data: what docs/page.md describes, filled as a running fleet would fill it."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from medley.dashboard.feed import Broadcast, Events
from medley.dashboard.served import served
from medley.protocol.errors import Unavailable

NOW_MS = 1_795_167_000_000
HOSTILE = "<img src=x onerror=\"document.title='taken'\">"


def loss(t_s: float) -> float:
    return 1.1 + 6.4 * math.exp(-t_s / 55)


def sample() -> dict[str, Any]:
    """A snapshot: one job at work, one waiting, one finished, and five machines."""
    job = {
        "id": "j-7f3a",
        "name": "medical-qa",
        "state": "running",
        "progress": 0.62,
        "commits": 412,
        "loss": loss(240),
        "heldout_loss": loss(240) + 0.2,
        "tokens_per_s": 11840.0,
        "left_s": 147.0,
        "started_ms": NOW_MS - 240_000,
        "reason": "",
    }
    finished = {"state": "finished", "progress": 1.0, "left_s": None, "started_ms": NOW_MS - 9_000_000}
    waiting = {"state": "waiting", "progress": 0.0, "commits": 0, "loss": None, "heldout_loss": None}
    return {
        "now_ms": NOW_MS,
        "cluster": {"name": "lab", "address": "192.168.1.20:7070", "version": "0.1.0"},
        "nodes": [
            node("desktop-1", ["coordinator", "shard"], "working", None, ""),
            node("desktop-2", ["worker", "shard"], "working", 5210.0, ""),
            node("laptop-anna", ["worker"], "working", 4630.0, ""),
            node("laptop-ben", ["worker"], "idle", 0.0, "its link of 0.4 MB/s would hold up every round"),
            node("spot-17", ["worker"], "lost", None, "no progress for 12 s; its 2 leases went to desktop-2"),
        ],
        "jobs": [
            job,
            job | waiting | {"id": "j-810c", "name": "opt-lora", "tokens_per_s": None, "left_s": None}
            | {"started_ms": None, "reason": "waits for medical-qa: no worker is free"},
            job | finished | {"id": "j-5d20", "name": "demo", "tokens_per_s": None, "loss": 0.41},
        ],
        "curves": {
            "j-7f3a": {
                "loss": [[t, loss(t) + 0.12 * math.sin(t * 1.7)] for t in range(1, 241)],
                "heldout_loss": [[t, loss(t) + 0.2] for t in range(20, 241, 20)],
                "tokens_per_s": [[t, 11_500 + 900 * math.sin(t / 9) - 3500 * (90 < t < 104)] for t in range(2, 241, 2)],
            }
        },
        "decisions": [
            decision(-62, "spot-17", "declared lost", "its engine made no progress for 12 s"),
            decision(-61, "lease 1184", "given to desktop-2", "spot-17, which held it, is lost"),
            decision(-40, "laptop-ben", "left idle", "its link of 0.4 MB/s would hold up every round"),
            decision(-3, "round 412", "committed with 2 of 2", "every slot was staged within the grace of 0.8 s"),
        ],
        "models": ["demo", "tinyllama-1.1b"],
        "servings": [served(serving())],
    }  # fmt: skip


def serving() -> dict[str, Any]:
    """As a coordinator answers `servings`: three stages, one machine in reserve, one on its way out."""
    hops = [hop("desktop-1", 0, 9, "desktop-2"), hop("laptop-anna", 9, 16, "desktop-2"), hop("mini-4", 16, 22, "")]
    pipeline = {
        "name": "p0", "state": "serving", "generation": 4, "requests": 5, "queue": 1, "in_flight": 3, "tokens": 8123,
        "recomputed": 0, "latency_s": 0.0631, "link_s": 0.0032, "hops": hops,
        "links": [{"rtt_s": 0.0004, "bytes_per_s": 110e6}, None],
    }  # fmt: skip
    machines = [
        machine("desktop-1", range(9), 0.93, 2), machine("laptop-anna", range(9, 16), 0.88, 1),
        machine("mini-4", range(16, 22), 0.71, 0), machine("desktop-2", range(16), 0.0, 0),
        machine("spot-17", range(0), 0.0, 0) | {"up": False},
    ]  # fmt: skip
    decisions = [
        said(-58, "layout", "desktop-1 0-8, laptop-anna 9-15, mini-4 16-21: the fastest for one stream that fits"),
        said(-21, "p0", "spot-17 is gone (its connection ended): laptop-anna, in reserve, goes on after 0.4 s"),
        said(-20, "reserve", "desktop-2 loads layers 9-15 beside its own, to take over from laptop-anna"),
    ]
    note = {
        "model": "tinyllama-1.1b", "serving": True, "reason": "", "tokens_per_s": 47.3, "waiting": 1,
        "pipelines": [pipeline], "machines": machines, "decisions": decisions,
        "offer": {"url": "http://127.0.0.1:8080/v1", "keyed": False, "source": ""},
    }  # fmt: skip
    return {"job": "tinyllama-1.1b-7c21", "name": "tinyllama-1.1b", "reason": "", "note": note}


def hop(name: str, first: int, end: int, reserve: str) -> dict[str, Any]:
    return {"machine": name, "first": first, "end": end, "pass_s": 0.0022 * (end - first), "reserve": reserve}


def machine(name: str, layers: range, busy: float, queue: int) -> dict[str, Any]:
    return {
        "name": name, "up": True, "layers": list(layers), "suspicions": 0, "draining": False, "slowness": 1.0,
        "busy": busy, "queue": queue, "requests": 5, "kv_nbytes": len(layers) * 5 * 300 * 1024,
        "memory_nbytes": (900 << 20) + len(layers) * (88 << 20), "shadow_nbytes": 0,
    }  # fmt: skip


def said(after_s: int, subject: str, what: str) -> dict[str, Any]:
    return {"wall_s": NOW_MS / 1000 + after_s, "subject": subject, "text": what}


def node(name: str, roles: list[str], state: str, speed: float | None, reason: str) -> dict[str, Any]:
    seen_ms = NOW_MS - (74_000 if state == "lost" else 500)
    return {"id": f"n-{name}", "name": name, "roles": roles, "state": state, "tokens_per_s": speed} | {
        "seen_ms": seen_ms,
        "reason": reason,
    }


def decision(after_s: int, subject: str, what: str, reason: str) -> dict[str, Any]:
    return {"at_ms": NOW_MS + after_s * 1000, "subject": subject, "decision": what, "reason": reason}


class SampleFeed:
    """Shows `data`; answers by repeating the question, in pieces."""

    def __init__(self, data: dict[str, Any] | None = None, **limits: int) -> None:
        self.data = data or sample()
        self.broadcast = Broadcast(**limits)
        self.asked: list[tuple[str, Sequence[Mapping[str, str]]]] = []

    def snapshot(self) -> Mapping[str, Any]:
        return self.data

    def events(self) -> Events:
        return self.broadcast.subscribe()

    async def ask(self, model: str, messages: Sequence[Mapping[str, str]]) -> AsyncIterator[str]:
        self.asked.append((model, messages))
        if model not in self.data["models"]:
            raise Unavailable(f"no machine serves '{model}': medley serve {model} starts it")
        for word in messages[-1]["content"].split():
            yield f"{word} "
