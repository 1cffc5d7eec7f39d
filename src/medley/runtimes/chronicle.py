"""What people read about a pool: decisions with their reasons, curves, metrics, live events.

Nothing here decides anything or is needed to recover: losing it costs history, never truth. Per job, one JSON
line for each commit and measurement is appended to `jobs/<job>/history.jsonl`; decisions go to `decisions.jsonl`
and a bounded memory. The curves in memory are those of the jobs that were last asked for or that run; files are
read from their end.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections import OrderedDict, deque
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
CURVES_MAX = 8
RECENT_MAX = 20
READ_NBYTES_MAX = 16 << 20
DECISIONS_NBYTES_MAX = 8 << 20

Entry = dict[str, Any]


class Chronicle:
    """Keeps and hands out; `listen` gives every new entry to a listener as it happens."""

    def __init__(self, directory: Path, metrics: Metrics) -> None:
        self._directory = directory
        self._metrics = metrics
        self._log = logger("story")
        self._decisions: deque[Entry] = deque(maxlen=DECISIONS_MAX)
        self._curves: OrderedDict[JobId, deque[Entry]] = OrderedDict()
        self._recent: dict[JobId, deque[Entry]] = {}
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
        self._keep(entry)
        self._tell(entry)

    def _keep(self, entry: Entry) -> None:
        """On disk; a file that has grown too long begins anew with what memory holds."""
        path = self._directory / "decisions.jsonl"
        _append(path, entry)
        with contextlib.suppress(OSError):
            if path.stat().st_size > DECISIONS_NBYTES_MAX:
                fresh = path.with_suffix(".new")
                fresh.write_text("".join(json.dumps(one) + "\n" for one in self._decisions), encoding="utf-8")
                fresh.replace(path)

    def decisions(self, subject: str = "", limit: int = 200) -> list[Entry]:
        """The newest decisions whose subject or text names `subject`."""
        found = [d for d in self._decisions if not subject or subject in d["subject"] or subject in d["text"]]
        return found[-limit:]

    def curve(self, job: JobId, kind: str) -> list[Entry]:
        """Points of kind commit or heldout, oldest first."""
        return [p for p in self._points(job) if p["kind"] == kind]

    def recent_commits(self, job: JobId) -> list[Entry]:
        """The newest few commits, oldest first; a job's history is looked at once for them."""
        if job not in self._recent:
            points = self._curves.get(job) or _read(self._history(job), 10 * RECENT_MAX)
            self._recent[job] = deque((p for p in points if p["kind"] == "commit"), maxlen=RECENT_MAX)
        return list(self._recent[job])

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
            if entry["kind"] == "commit":
                self.recent_commits(job)
                self._recent[job].append(entry)
            self._points(job).append(entry)
            _append(self._history(job), entry)
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
            self._curves[job] = deque(_read(self._history(job), POINTS_MAX), maxlen=POINTS_MAX)
        self._curves.move_to_end(job)  # a job that runs is touched by each commit, and so stays
        while len(self._curves) > CURVES_MAX:
            self._curves.popitem(last=False)
        return self._curves[job]

    def _history(self, job: JobId) -> Path:
        return self._directory / "jobs" / job / "history.jsonl"

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
    """The newest entries, oldest first, however long the file has become."""
    try:
        with path.open("rb") as file:
            begin = max(0, file.seek(0, os.SEEK_END) - READ_NBYTES_MAX)
            file.seek(begin)
            lines = file.read(READ_NBYTES_MAX).decode(errors="replace").splitlines()[1 if begin else 0 :][-limit:]
    except OSError:
        return []
    entries = []
    for line in lines:
        with contextlib.suppress(ValueError):  # the last line of a crash may be half a line
            entries.append(json.loads(line))
    return entries
