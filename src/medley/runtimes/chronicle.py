"""What people read about a pool: decisions with their reasons, curves, metrics, live events.

Nothing here decides anything or is needed to recover: losing it costs history, never truth. Per job, one JSON
line for each commit and measurement is appended to `jobs/<job>/history.jsonl`; decisions go to `decisions.jsonl`
and a bounded memory.
"""

from __future__ import annotations

import contextlib
import json
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from medley.observe.logs import logger
from medley.observe.metrics import Metrics
from medley.protocol.ids import NS_PER_S, JobId
from medley.protocol.records import (
    Aborted,
    CheckpointSealed,
    Committed,
    HeldoutMeasured,
    Placed,
    Promoted,
    Record,
    StateChanged,
)

DECISIONS_MAX = 5_000
POINTS_MAX = 20_000

Entry = dict[str, Any]


class Chronicle:
    """Keeps and hands out; `listen` gives every new entry to a listener as it happens."""

    def __init__(self, directory: Path, metrics: Metrics) -> None:
        self._directory = directory
        self._metrics = metrics
        self._log = logger("story")
        self._decisions: deque[Entry] = deque(maxlen=DECISIONS_MAX)
        self._curves: dict[JobId, deque[Entry]] = {}
        self._listeners: list[Callable[[Entry], None]] = []
        self._decisions.extend(_read(directory / "decisions.jsonl", DECISIONS_MAX))

    def listen(self, listener: Callable[[Entry], None]) -> Callable[[], None]:
        """Hear every entry from now on; returns how to stop."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def explain(self, subject: str, text: str, wall_ns: int, cause: str = "") -> None:
        if subject.startswith("round of "):  # why a round waits is news for a moment only
            return
        entry = {"kind": "decision", "wall_ns": wall_ns, "subject": subject, "text": text, "cause": cause}
        self._decisions.append(entry)
        self._log.info("because", subject=subject, text=text, cause=cause)
        _append(self._directory / "decisions.jsonl", entry)
        self._tell(entry)

    def decisions(self, subject: str = "", limit: int = 200) -> list[Entry]:
        """The newest decisions whose subject or text names `subject`."""
        found = [d for d in self._decisions if not subject or subject in d["subject"] or subject in d["text"]]
        return found[-limit:]

    def curve(self, job: JobId, kind: str) -> list[Entry]:
        """Points of kind commit or heldout, oldest first."""
        return [p for p in self._points(job) if p["kind"] == kind]

    def note(self, stream: str, record: Record, wall_ns: int) -> None:
        """A record is durable: draw it, count it, tell it."""
        job = stream.removeprefix("job/")
        entry: Entry | None = None
        match record:
            case Committed():
                entry = _commit(record)
                self._count(job, record)
            case HeldoutMeasured():
                entry = _heldout(record)
                self._metrics.heldout_loss.labels(job).set(record.loss)
            case StateChanged(_, state, reason):
                entry = {"kind": "state", "state": state, "reason": reason}
            case CheckpointSealed(version, _, _, nbytes):
                entry = {"kind": "checkpoint", "version": version, "nbytes": nbytes}
            case Aborted():
                self._metrics.aborts_total.labels(job, _short(record.reason)).inc()
            case Placed() | Promoted():
                entry = {"kind": "placement", "reason": record.reason}
            case _:
                pass
        if entry is not None:
            entry = {**entry, "job": job, "wall_ns": wall_ns}
            self._points(job).append(entry)
            _append(self._directory / "jobs" / job / "history.jsonl", entry)
            self._tell(entry)

    def _count(self, job: JobId, record: Committed) -> None:
        metrics = self._metrics
        metrics.commits_total.labels(job).inc()
        metrics.samples_committed_total.labels(job).inc(record.samples)
        metrics.tokens_total.labels(job).inc(record.tokens)
        metrics.loss.labels(job).set(record.loss)
        for member in record.members:
            metrics.staleness.labels(job).observe(member.staleness)

    def _points(self, job: JobId) -> deque[Entry]:
        if job not in self._curves:
            path = self._directory / "jobs" / job / "history.jsonl"
            self._curves[job] = deque(_read(path, POINTS_MAX), maxlen=POINTS_MAX)
        return self._curves[job]

    def _tell(self, entry: Entry) -> None:
        for listener in list(self._listeners):
            listener(entry)


def _commit(record: Committed) -> Entry:
    return {
        "kind": "commit",
        "version": record.number,
        "loss": record.loss,
        "tokens": record.tokens,
        "samples": record.samples,
        "lr": record.lr,
        "members": [{"node": m.node, "staleness": m.staleness} for m in record.members],
        "elapsed_s": record.elapsed_ns / NS_PER_S,
    }


def _heldout(record: HeldoutMeasured) -> Entry:
    return {
        "kind": "heldout",
        "version": record.version,
        "loss": record.loss,
        "accuracy": record.accuracy,
        "tokens": record.tokens,
        "elapsed_s": record.elapsed_ns / NS_PER_S,
    }


def _short(reason: str) -> str:
    """A label of few values for a sentence of many."""
    return "staleness" if "staleness" in reason else "not finite" if "finite" in reason else "other"


def _append(path: Path, entry: Entry) -> None:
    """History is a comfort: a full disk must not end the coordinator for it."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")


def _read(path: Path, limit: int) -> list[Entry]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()[-limit:]
    except OSError:
        return []
    entries = []
    for line in lines:
        with contextlib.suppress(ValueError):  # the last line of a crash may be half a line
            entries.append(json.loads(line))
    return entries
