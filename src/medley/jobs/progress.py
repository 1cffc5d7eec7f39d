"""What a person sees of a running job: one job's answer and its live events, folded into figures and an estimate.

Pure: no clock, no terminal. Time is the training time that the events carry.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

WINDOW = 20  # commits that the rates are taken over


@dataclass(slots=True)
class Progress:
    """`samples` of `total` are committed; rates are per second of training; unknown figures are None."""

    name: str
    state: str
    reason: str
    samples: int
    total: int
    version: int
    loss: float | None
    heldout_loss: float | None
    accuracy: float | None
    elapsed_s: float
    max_s: float
    tokens_per_s: float
    samples_per_s: float = 0.0
    _recent: deque[tuple[float, int, int]] = field(default_factory=lambda: deque(maxlen=WINDOW))

    @classmethod
    def of(cls, job: dict[str, Any], max_minutes: float = 0.0) -> Progress:
        """The progress in a job's answer; `max_minutes` is where the job will stop, 0 for nowhere."""
        progress = cls("", "", "", 0, 0, 0, None, None, None, 0.0, max_minutes * 60, 0.0)
        progress.refresh(job)
        return progress

    def refresh(self, job: dict[str, Any]) -> None:
        """Take over what a newer answer of the coordinator says."""
        self.name, self.state, self.reason = job["name"], job["state"], job["reason"]
        self.samples, self.total, self.version = job["samples"], job["total"], job["version"]
        self.loss, self.heldout_loss, self.accuracy = job["loss"], job["heldout_last"], job["accuracy"]
        self.elapsed_s, self.tokens_per_s = job["elapsed_s"], job["tokens_per_s"]

    def note(self, event: dict[str, Any]) -> None:
        """One live event; kinds that say nothing of progress pass."""
        match event:
            case {"kind": "commit"}:
                self._commit(event)
            case {"kind": "heldout", "loss": loss, "accuracy": accuracy}:
                self.heldout_loss, self.accuracy = loss, accuracy
            case {"kind": "state", "state": state, "reason": reason}:
                self.state, self.reason = state, reason
            case _:
                pass

    def _commit(self, event: dict[str, Any]) -> None:
        if event["version"] <= self.version:
            return  # an answer that was asked for meanwhile has counted it already
        self.samples = min(self.samples + event["samples"], self.total or self.samples + event["samples"])
        self.version, self.loss, self.elapsed_s = event["version"], event["loss"], event["elapsed_s"]
        self._recent.append((event["elapsed_s"], event["tokens"], event["samples"]))
        seconds = self._recent[-1][0] - self._recent[0][0]
        if seconds > 0:
            later = list(self._recent)[1:]
            self.tokens_per_s = sum(tokens for _, tokens, _ in later) / seconds
            self.samples_per_s = sum(samples for _, _, samples in later) / seconds

    @property
    def fraction(self) -> float:
        """Of the job, from 0 to 1: by samples, or by time where that ends sooner."""
        by_samples = self.samples / self.total if self.total else 0.0
        by_time = self.elapsed_s / self.max_s if self.max_s else 0.0
        return min(max(by_samples, by_time), 1.0)

    @property
    def left_s(self) -> float | None:
        """Seconds of training that remain, None while nobody can know."""
        rate = self.samples_per_s or (self.samples / self.elapsed_s if self.elapsed_s > 0 else 0.0)
        estimates = [(self.total - self.samples) / rate] if rate > 0 and self.total else []
        if self.max_s:
            estimates.append(max(self.max_s - self.elapsed_s, 0.0))
        return min(estimates, default=None)
