"""How long a death costs: a worker until its lease is out again, a coordinator until work goes on.

    python bench/recovery.py [--kills 7] [--what all|worker|engine|coordinator|shard]

A pool of three workers and two shards trains the one-hot task; one process at a time meets SIGKILL while the event log
is read every few milliseconds. Prints one line of JSON for each kind, with medians over the kills:

    worker       its whole machine dies -> the samples of its lease are leased to somebody else
    engine       only its engine dies   -> the same
    coordinator  -> the first commit of its successor
    shard        its engine dies, without a backup -> the first commit after the rollback
"""

from __future__ import annotations

import argparse
import json
import random
import sqlite3
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.killing import kill, processes
from bench.storm import spec

from medley.protocol.codec import parse
from medley.protocol.messages import Span
from medley.protocol.records import Aborted, Committed, Leased, Placed, Returned, Snapshot
from medley.roles.state import RunState
from medley.runtimes.coordinator import RECORDS
from medley.runtimes.local import Pool

TARGET_S = {"worker": 1.0, "engine": 1.0, "coordinator": 3.0}
LOOK_S = 0.004
DEADLINE_S = 60.0
TRIES = 5
CALM_S = 6.0  # a process that lived so long is started again at once
PAUSE = threading.Event()


@dataclass(slots=True)
class Log:
    """Follows the event log of a pool from outside, as it is written."""

    path: Path
    seq: int = 0
    held: dict[int, tuple[str, Span]] = field(default_factory=dict)

    def news(self) -> Iterator[tuple[int, Any]]:
        """(term, record) for all that is new; keeps `held` up to date."""
        with sqlite3.connect(f"file:{self.path}?mode=ro", uri=True, timeout=10) as connection:
            rows = connection.execute(
                "select seq, term, kind, body from medley_events where seq > ? order by seq", (self.seq,)
            ).fetchall()
        connection.close()
        for seq, term, kind, body in rows:
            self.seq = seq
            record = RECORDS.from_json(kind, body)
            self._fold(record)
            yield term, record

    def _fold(self, record: Any) -> None:
        match record:
            case Leased():
                self.held[record.lease] = (record.node, record.span)
            case Returned() | Aborted():
                for lease in record.leases:
                    self.held.pop(lease, None)
            case Committed():
                for member in record.members:
                    for lease in member.leases:
                        self.held.pop(lease, None)
            case Placed():
                self.held.clear()
            case Snapshot():  # it stands for all before it, read or not
                samples = parse(record.state, RunState).samples
                self.held = {n: (h.node, h.span) for n, h in samples.leases.items()} if samples else {}

    def now(self) -> None:
        """Take in everything that is written already."""
        for _ in self.news():
            pass

    def commit(self) -> None:
        """Wait for one more commit, counted from now."""
        self.now()
        self.wait(next_commit, "a commit")
        self.now()

    def wait(self, wanted: Callable[[int, Any], bool], what: str) -> float:
        """When (monotonic) a wanted record was in the log."""
        end = time.monotonic() + DEADLINE_S
        while time.monotonic() < end:
            for term, record in self.news():
                if wanted(term, record):
                    return time.monotonic()
            PAUSE.wait(LOOK_S)
        raise TimeoutError(f"{what} did not come within {DEADLINE_S:.0f} s")


def next_commit(term: int, record: Any) -> bool:
    return isinstance(record, Committed)


class Trial:
    """One pool with a long job; each method kills once and gives seconds."""

    def __init__(self, pool: Pool, seed: int) -> None:
        self.pool = pool
        self.random = random.Random(seed)
        self.log = Log(pool.options.directory / "events.db")

    def worker(self) -> float:
        return self._lease_out_again("")

    def engine(self) -> float:
        return self._lease_out_again("-engine")

    def _lease_out_again(self, which: str) -> float:
        """Of the samples that the dead one held, the first that somebody is given again.

        An update that every shard held already survives its worker; a victim with nothing else tells nothing.
        """
        for _ in range(TRIES):
            self.log.commit()
            victim = self.random.choice(sorted({node for node, _ in self.log.held.values()}))
            pid = processes(self.pool.pid).get(victim + which, 0)
            spans = {lease: span for lease, (node, span) in self.log.held.items() if node == victim}
            if not pid or not kill(pid):
                continue
            died = time.monotonic()
            found = self._released(spans, died)
            if found:
                return found
            print(f"{victim}{which} held nothing that was lost", file=sys.stderr, flush=True)
            _rest(self.pool)
        raise TimeoutError(f"no lease was lost in {TRIES} deaths")

    def _released(self, spans: dict[int, Span], died: float) -> float:
        """Seconds from `died` until samples of a returned lease are leased again; 0 when all were committed."""
        starts: set[tuple[int, int]] = set()
        waiting = dict(spans)

        def wanted(_: int, record: Any) -> bool:
            match record:
                case Returned(leases):
                    starts.update((s.epoch, s.start) for n in leases if (s := waiting.pop(n, None)) is not None)
                case Committed():
                    for lease in [n for m in record.members for n in m.leases]:
                        waiting.pop(lease, None)
                case Leased():
                    return (record.span.epoch, record.span.start) in starts
            return not waiting and not starts

        came = self.log.wait(wanted, "the lease")
        return came - died if starts else 0.0

    def coordinator(self) -> float:
        self.log.commit()
        pid = processes(self.pool.pid)["coordinator"]
        before = int(self.pool.operator.ask("status")["term"])
        kill(pid)
        died = time.monotonic()
        return self.log.wait(lambda term, r: term > before and next_commit(term, r), "a commit") - died

    def shard(self) -> float:
        self.log.commit()
        kill(processes(self.pool.pid)["shard-1-engine"])
        died = time.monotonic()
        self.log.wait(lambda _, r: isinstance(r, Placed), "a rollback")
        return self.log.wait(next_commit, "a commit") - died


def measure(what: str, kills: int, seed: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="medley-recovery-", ignore_cleanup_errors=True) as folder:
        with Pool(Path(folder) / "pool") as pool:
            pool.wait_ready()
            # Long enough for all kills, with leases of about a third of a second.
            pool.operator.ask("submit", {"spec": _long(what)})
            trial = Trial(pool, seed)
            trial.log.wait(next_commit, "the first commit")
            seconds = []
            for _ in range(kills):
                _rest(pool)
                seconds.append(round(getattr(trial, what)(), 3))
                print(what, seconds[-1], file=sys.stderr, flush=True)
    result = {
        "what": what,
        "median_s": round(statistics.median(seconds), 3),
        "worst_s": max(seconds),
        "kills": kills,
        "seconds": seconds,
    }
    if what in TARGET_S:
        result |= {"target_s": TARGET_S[what], "good": result["median_s"] < TARGET_S[what]}
    return result


def _long(name: str) -> dict[str, Any]:
    wanted = spec("sync", 1 << 16, 1) | {"name": name}
    wanted["task_options"] = {"samples": 1 << 16, "step_ms": 300}
    wanted["train"] |= {"epochs": 1.0, "eval_every_commits": 0}
    return wanted


def _rest(pool: Pool) -> None:
    """Until all workers are back at work and the watchdog has forgotten the last death."""
    calm = time.monotonic() + CALM_S
    end = time.monotonic() + DEADLINE_S
    while time.monotonic() < end:
        nodes = pool.operator.ask("nodes")["nodes"]
        working = sum(n["phase"] == "training" and "worker" in n["roles"] for n in nodes)
        if working == pool.options.workers and time.monotonic() > calm:
            return
        PAUSE.wait(0.1)
    raise TimeoutError(f"not all workers came back within {DEADLINE_S:.0f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--kills", type=int, default=7)
    parser.add_argument("--what", choices=("all", "worker", "engine", "coordinator", "shard"), default="all")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    kinds = ("worker", "engine", "coordinator", "shard") if options.what == "all" else (options.what,)
    results = []
    for what in kinds:
        results.append(measure(what, options.kills, options.seed))
        print(json.dumps(results[-1]), flush=True)
    raise SystemExit(0 if all(r.get("good", True) for r in results) else 1)


if __name__ == "__main__":
    main()
