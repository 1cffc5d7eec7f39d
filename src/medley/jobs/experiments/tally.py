"""What happened in one world, folded into one row of the runs table and the curves of the report.

Promises: constant work for each fact and bounded room, however long the world runs. Times in the outcome are virtual
seconds. What the columns mean is in `COLUMNS`; the report and the criteria read it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from medley.jobs.experiments.thinning import Bins, Thinned
from medley.policies.costs import energy_j, price_usd
from medley.protocol.ids import NS_PER_S
from medley.runtimes.simulated import facts as f
from medley.runtimes.simulated.setup import Machine, Setup

COLUMNS: dict[str, str] = {
    "state": "done when every job is done; else failed, cancelled or unfinished",
    "reason": "of the first job that is not done",
    "jobs": "jobs that arrived",
    "jobs_done": "of these, jobs that were done",
    "missed_deadlines": "jobs whose deadline came and that were not done by then, or ended otherwise before",
    "completion_s": "virtual time until the last job was over; empty while one is not done",
    "turnaround_mean_s": "from a job's arrival to its end, mean of those done",
    "turnaround_p95_s": "the same, 95th percentile",
    "queue_mean_s": "from a job's arrival to its first computation, mean of those that began",
    "queue_p95_s": "the same, 95th percentile",
    "bytes": "payload that left one machine for another, both planes",
    "bytes_tensors": "of these, tensors",
    "bytes_control": "of these, messages",
    "commits": "versions of the model",
    "samples": "training samples of all commits, also of those that a rollback undid",
    "tokens": "tokens of all commits, likewise",
    "tokens_per_s": "tokens over the time of completion (or of the end)",
    "train_loss": "mean training loss of the last tenth of the commits",
    "final_loss": "last held-out loss",
    "best_loss": "lowest held-out loss",
    "accuracy": "last held-out accuracy",
    "time_to_target_s": "until the held-out loss was at or below the target; empty if never",
    "bytes_to_target": "bytes moved until then",
    "utilisation": "fraction of the workers' time that was computation",
    "refused": "updates that were carried or dropped",
    "refused_fraction": "of all updates that were decided on",
    "staleness_mean": "commits between a member's base and its commit, mean",
    "staleness_p95": "the same, 95th percentile",
    "nodes_lost": "times that a machine went down or was taken away",
    "faults_struck": "faults that met an operation",
    "cost_usd": "machines that were up, at their price by the hour",
    "energy_wh": "machines that were up, at their power idle and under load",
    "events": "events of the kernel",
    "wall_s": "seconds that the simulation took on this computer",
    "digest": "of the whole trace; the same for the same seed",
}
TIMELINE_NODES = 48
CURVE_JOBS = 12
WAITS = 5000  # kept of the queue
_OVER = ("done", "failed", "cancelled")
_KINDS = {"compute": "compute", "measure": "compute", "pull": "transfer", "push": "transfer"}


@dataclass(slots=True)
class _Node:
    machine: Machine
    up_since_ns: int | None = None
    up_ns: int = 0
    compute_ns: int = 0
    downs: list[tuple[int, int]] = field(default_factory=list)
    down_since_ns: int | None = None
    bins: dict[str, Bins] = field(default_factory=dict)


@dataclass(slots=True)
class _Job:
    at_ns: int
    deadline_ns: int
    state: str = "waiting"
    reason: str = ""
    over_ns: int | None = None
    first_compute_ns: int | None = None


@dataclass(frozen=True, slots=True)
class Commit:
    """One point of the curve of commits."""

    job: str
    at_s: float
    version: int
    loss: float
    samples: int  # so far
    nbytes: int  # so far, of the world
    members: int
    staleness: float  # mean of the members


@dataclass(frozen=True, slots=True)
class Held:
    """One held-out evaluation."""

    job: str
    at_s: float
    version: int
    loss: float
    accuracy: float
    nbytes: int


@dataclass(frozen=True, slots=True)
class Lane:
    """One machine's time: for each bin the fraction it computed and the fraction it moved tensors, and its outages."""

    node: str
    device: str
    width_s: float
    compute: list[float]
    transfer: list[float]
    downs: list[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Curves:
    commits: list[Commit]
    held: list[Held]
    lanes: list[Lane]
    staleness: dict[int, int]  # how many members had it
    queue_s: list[float]  # waits, sorted; of very many every k-th ...
    begun: int  # ... of so many jobs that began
    jobs: list[dict[str, Any]]
    wanted: list[tuple[float, str, str]]  # time, machine, what became of it: spot and autoscaled machines
    decisions: list[tuple[float, str, str]]  # the last few hundred

    def plain(self) -> dict[str, Any]:
        return asdict(self)


class Tally:
    """An observer of one world."""

    def __init__(self, setup: Setup, target_loss: float = 0.0) -> None:
        self._target = target_loss
        self._nodes = {machine.name: _Node(machine) for machine in setup.machines}
        self._jobs = {one.job: _Job(one.at_ns, one.deadline_ns) for one in setup.arrivals}
        self._shown = set(list(self._nodes)[:TIMELINE_NODES])
        self._rented: set[str] = set()  # by the autoscaler
        self._drawn_jobs = set(list(self._jobs)[:CURVE_JOBS])
        self._moved: Counter[str] = Counter()
        self._counts: Counter[str] = Counter()
        self._staleness: Counter[int] = Counter()
        self._commits: dict[str, Thinned[Commit]] = {}
        self._held: dict[str, Thinned[Held]] = {}
        self._losses: Thinned[float] = Thinned()
        self._samples: Counter[str] = Counter()
        self._last_held: f.Evaluation | None = None
        self._best = math.inf
        self._target_at: tuple[int, int] | None = None
        self._wanted: Thinned[tuple[float, str, str]] = Thinned(400)
        self._decisions: Thinned[tuple[float, str, str]] = Thinned(400)

    def expect(self, machine: Machine) -> None:
        """A machine that the setup does not have will join."""
        self._nodes[machine.name] = _Node(machine)
        self._rented.add(machine.name)
        if len(self._shown) < TIMELINE_NODES:
            self._shown.add(machine.name)

    def note(self, fact: f.Fact) -> None:
        match fact:
            case f.Busy():
                self._busy(fact)
            case f.Moved(plane=plane, nbytes=nbytes):
                self._moved[plane] += nbytes
            case f.Committed():
                self._committed(fact)
            case f.Refused():
                self._counts["refused"] += 1
            case f.Evaluation():
                self._evaluated(fact)
            case f.JobState():
                self._job(fact)
            case f.NodeState():
                self._node(fact)
            case f.Struck():
                self._counts["struck"] += 1
            case f.Decided(at_ns, subject, text):
                self._decisions.add((at_ns / NS_PER_S, subject, text))

    @property
    def over(self) -> bool:
        """Whether every job that was to come has ended."""
        return all(job.over_ns is not None for job in self._jobs.values())

    # -- facts --------------------------------------------------------------------------------------------------

    def _busy(self, fact: f.Busy) -> None:
        node = self._nodes.get(fact.node)
        kind = _KINDS.get(fact.what)
        if node is None or kind is None or fact.at_ns <= fact.start_ns:
            return
        if kind == "compute":
            node.compute_ns += fact.at_ns - fact.start_ns
            job = self._jobs.get(fact.job)
            if job is not None and job.first_compute_ns is None:
                job.first_compute_ns = fact.start_ns
        if fact.node in self._shown:
            node.bins.setdefault(kind, Bins()).add(fact.start_ns, fact.at_ns)

    def _committed(self, fact: f.Committed) -> None:
        self._counts["commits"] += 1
        self._counts["members"] += len(fact.members)
        self._counts["samples"] += fact.samples
        self._counts["tokens"] += fact.tokens
        self._staleness.update(fact.staleness)
        self._samples[fact.job] += fact.samples
        self._losses.add(fact.loss)
        if fact.job in self._drawn_jobs:
            mean = sum(fact.staleness) / len(fact.staleness) if fact.staleness else 0.0
            at_s, so_far = fact.at_ns / NS_PER_S, self._samples[fact.job]
            total = self._moved.total()
            point = Commit(fact.job, at_s, fact.version, fact.loss, so_far, total, len(fact.members), mean)
            self._commits.setdefault(fact.job, Thinned()).add(point)

    def _evaluated(self, fact: f.Evaluation) -> None:
        self._last_held = fact
        self._best = min(self._best, fact.loss)
        if self._target and fact.loss <= self._target and self._target_at is None:
            self._target_at = (fact.at_ns, self._moved.total())
        if fact.job in self._drawn_jobs:
            point = Held(fact.job, fact.at_ns / NS_PER_S, fact.version, fact.loss, fact.accuracy, self._moved.total())
            self._held.setdefault(fact.job, Thinned()).add(point)

    def _job(self, fact: f.JobState) -> None:
        job = self._jobs.get(fact.job)
        if job is None:
            return
        job.state, job.reason = fact.state, fact.reason
        job.over_ns = fact.at_ns if fact.state in _OVER else None

    def _node(self, fact: f.NodeState) -> None:
        node = self._nodes.get(fact.node)
        if fact.node in self._rented or (node is not None and node.machine.spot):
            self._wanted.add((fact.at_ns / NS_PER_S, fact.node, fact.state))
        if node is None:
            return
        if fact.state == "up":
            if node.up_since_ns is None:
                node.up_since_ns = fact.at_ns
            if node.down_since_ns is not None:
                node.downs.append((node.down_since_ns, fact.at_ns))
                node.down_since_ns = None
        elif fact.state in ("down", "left", "interrupted"):
            self._gone(node, fact)

    def _gone(self, node: _Node, fact: f.NodeState) -> None:
        if node.up_since_ns is None:
            return
        self._counts["lost"] += fact.state != "left"
        node.up_ns += fact.at_ns - node.up_since_ns
        node.up_since_ns = None
        if fact.state == "down" and len(node.downs) < 500:
            node.down_since_ns = fact.at_ns

    # -- the end ------------------------------------------------------------------------------------------------

    def outcome(self, now_ns: int) -> tuple[dict[str, Any], Curves]:
        """The row (every column of COLUMNS but the world's own) and the curves, when the world stopped."""
        over = [job.over_ns for job in self._jobs.values() if job.over_ns is not None]
        end_ns = max(over) if self.over and over else now_ns
        for node in self._nodes.values():
            self._settle(node, end_ns)
        row = self._states(end_ns) | self._progress(end_ns) | self._machines(end_ns)
        return row, self._curves(end_ns)

    def _settle(self, node: _Node, end_ns: int) -> None:
        if node.up_since_ns is not None:
            node.up_ns += max(end_ns - node.up_since_ns, 0)
            node.up_since_ns = None
        if node.down_since_ns is not None:
            node.downs.append((node.down_since_ns, end_ns))
            node.down_since_ns = None

    def _states(self, end_ns: int) -> dict[str, Any]:
        jobs = self._jobs.values()
        done = [job for job in jobs if job.state == "done"]
        odd = next((job for job in jobs if job.state != "done"), None)
        state = "done" if odd is None else odd.state if odd.state in _OVER else "unfinished"
        times = [(job.over_ns - job.at_ns) / NS_PER_S for job in done if job.over_ns is not None]
        queue = self._queue()
        return {
            "state": state,
            "reason": "" if odd is None else odd.reason or f"a job was {odd.state} when the time was over",
            "jobs": sum(job.at_ns <= end_ns for job in jobs),
            "jobs_done": len(done),
            "missed_deadlines": sum(self._missed(job, end_ns) for job in jobs),
            "completion_s": end_ns / NS_PER_S if odd is None else None,
            "turnaround_mean_s": _mean(times),
            "turnaround_p95_s": quantile(times, 0.95),
            "queue_mean_s": _mean(queue),
            "queue_p95_s": quantile(queue, 0.95),
        }

    def _missed(self, job: _Job, end_ns: int) -> bool:
        if not job.deadline_ns or (job.over_ns is None and job.deadline_ns > end_ns):
            return False  # one that is still to come is not missed
        return job.state != "done" or (job.over_ns or 0) > job.deadline_ns

    def _queue(self) -> list[float]:
        started = [job for job in self._jobs.values() if job.first_compute_ns is not None]
        return [((job.first_compute_ns or 0) - job.at_ns) / NS_PER_S for job in started]

    def _progress(self, end_ns: int) -> dict[str, Any]:
        counts, held = self._counts, self._last_held
        losses = self._losses.points()
        decided = counts["members"] + counts["refused"]
        return {
            "bytes": self._moved.total(),
            "bytes_tensors": self._moved["tensors"],
            "bytes_control": self._moved["control"],
            "commits": counts["commits"],
            "samples": counts["samples"],
            "tokens": counts["tokens"],
            "tokens_per_s": counts["tokens"] / (end_ns / NS_PER_S) if end_ns else None,
            "train_loss": _mean(losses[-max(1, len(losses) // 10) :]),
            "final_loss": held.loss if held else None,
            "best_loss": self._best if held else None,
            "accuracy": held.accuracy if held else None,
            "time_to_target_s": self._target_at[0] / NS_PER_S if self._target_at else None,
            "bytes_to_target": self._target_at[1] if self._target_at else None,
            "refused": counts["refused"],
            "refused_fraction": counts["refused"] / decided if decided else None,
            "staleness_mean": _counted_mean(self._staleness),
            "staleness_p95": _counted_quantile(self._staleness, 0.95),
            "faults_struck": counts["struck"],
        }

    def _machines(self, end_ns: int) -> dict[str, Any]:
        workers = [node for node in self._nodes.values() if node.machine.worker]
        up = sum(node.up_ns for node in workers)
        busy = sum(node.compute_ns for node in workers)
        return {
            "utilisation": min(busy / up, 1.0) if up else None,
            "nodes_lost": self._counts["lost"],
            "cost_usd": sum(
                price_usd(node.machine.device, node.up_ns, spot=node.machine.spot) for node in self._nodes.values()
            ),
            "energy_wh": sum(
                energy_j(node.machine.device, node.compute_ns, node.up_ns) for node in self._nodes.values()
            )
            / 3600,
        }

    def _curves(self, end_ns: int) -> Curves:
        return Curves(
            commits=[point for one in self._commits.values() for point in one.points()],
            held=[point for one in self._held.values() for point in one.points()],
            lanes=[_lane(node, end_ns) for name, node in self._nodes.items() if name in self._shown],
            staleness=dict(sorted(self._staleness.items())),
            queue_s=_thinned(sorted(self._queue())),
            begun=len(self._queue()),
            jobs=[_job_row(name, job) for name, job in list(self._jobs.items())[:5000]],
            wanted=self._wanted.points(),
            decisions=self._decisions.points(),
        )


def _thinned(values: list[float]) -> list[float]:
    return values[:: -(-len(values) // WAITS) or 1]


def _job_row(name: str, job: _Job) -> dict[str, Any]:
    return {
        "job": name,
        "state": job.state,
        "at_s": job.at_ns / NS_PER_S,
        "first_compute_s": None if job.first_compute_ns is None else job.first_compute_ns / NS_PER_S,
        "over_s": None if job.over_ns is None else job.over_ns / NS_PER_S,
        "reason": job.reason,
    }


def _lane(node: _Node, end_ns: int) -> Lane:
    bins = {kind: node.bins.get(kind, Bins()) for kind in ("compute", "transfer")}
    for one in bins.values():
        one.reach(end_ns)
    width = max(one.width_ns for one in bins.values())
    for one in bins.values():
        one.reach(width * len(one.values))
    shares = {kind: [round(value / width, 4) for value in one.values] for kind, one in bins.items()}
    downs = [(start / NS_PER_S, stop / NS_PER_S) for start, stop in node.downs if start < end_ns]
    machine = node.machine
    return Lane(machine.name, machine.device.kind, width / NS_PER_S, shares["compute"], shares["transfer"], downs)


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def quantile(values: Iterable[float], fraction: float) -> float | None:
    """The smallest value that at least this fraction of all reach; None of nothing."""
    ordered = sorted(values)
    return ordered[max(math.ceil(fraction * len(ordered)) - 1, 0)] if ordered else None


def _counted_mean(counted: Counter[int]) -> float | None:
    return sum(value * many for value, many in counted.items()) / counted.total() if counted else None


def _counted_quantile(counted: Counter[int], fraction: float) -> int | None:
    needed, so_far = fraction * counted.total(), 0
    for value, many in sorted(counted.items()):
        so_far += many
        if so_far >= needed:
            return value
    return None
