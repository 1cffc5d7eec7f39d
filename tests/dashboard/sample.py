"""A feed of sample data: what docs/page.md describes, filled as a running fleet would fill it."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from medley.dashboard.feed import Broadcast, Events
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
        "models": ["demo"],
    }  # fmt: skip


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
