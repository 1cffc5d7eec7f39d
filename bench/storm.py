"""The integer proof through a storm: processes of a pool are killed at random and at every boundary, nothing is lost.

    python bench/storm.py [--kills 50] [--mode all|sync|async|local-sgd] [--replication 1|2] [--json -] [--seed N]

Each mode trains the one-hot task (`medley.engines.proof`) on three workers and two shards while SIGKILL meets workers,
shards, their engines, the coordinator and its vault: `--kills` times at random moments, once at each persist and send
boundary that a dry run or the storm itself passes, and once the watchdog with everything below it. Jobs follow each
other until all of that has happened. Every job must end by itself with each sample counted once, in the ledger and in
the exported parameters. The last line is JSON; the exit status is 1 if a sample is missing or doubled, a boundary was
not met, or a job did not end.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.killing import Boundaries, family, kill, kind_of, processes

from medley.engines.proof import miscounted, miscounted_values
from medley.observe.failpoints import FULL
from medley.protocol.errors import MedleyError, Unavailable
from medley.protocol.layout import TensorSpec, make_layout
from medley.runtimes.children.preparer import read_checkpoint
from medley.runtimes.local import Pool

BLOCK = 1024
MODES = ("sync", "async", "local-sgd")
STEP_S = 0.05
STALL_S = 180.0  # nothing moved although nothing was killed
BETWEEN_S = 2.0  # mean time between random kills
ARM_FIRST_S, ARM_LAST_S = 0.7, 12.0  # one more boundary of each side is armed after a commit, or after so long
JOBS_MAX = 40
TROUBLE_S = 3.0  # between two troubles with checkpoints, while something that only they cause has not been met
TROUBLE = {"PartFailed", "LoadFailed", "CheckpointDamaged"}
# Passed only while a job begins or ends: armed before the first job is submitted.
RARE = ("Submitted", "Prepared", "Leave", "StateChanged", "Placed")
# Boundaries of each are armed side by side.
SIDES = ("coordinator.", "node.", "eventlog.", "checkpoint.")


def say(*words: object) -> None:
    print(*words, file=sys.stderr, flush=True)


def spec(mode: str, samples: int, replication: int) -> dict[str, Any]:
    """Summed updates, rate 1, nothing scaled, many small leases."""
    steps = 4 if mode == "local-sgd" else 1
    optimizer = {
        "kind": "sgd", "lr": 1.0, "weight_decay": 0.0, "clip_norm": 0.0, "schedule": "constant", "warmup_fraction": 0.0
    }  # fmt: skip
    sync = {"mode": mode, "local_steps": steps, "staleness_power": 0.0, "staleness_bound": 2}
    return {
        "name": f"proof-{mode}",
        "task": "medley.engines.proof:OneHot",
        "task_options": {"samples": samples, "step_ms": 30},
        "data": {"source": "task"},
        "train": {
            "aggregation": "sum",
            "batch_samples": 16 // steps,
            "optimizer": optimizer,
            "outer": {"kind": "sgd", "lr": 1.0},
            "sync": sync,
            "eval_every_commits": 15,
        },
        "placement": {"shards": 2, "replication": replication, "block_elements": BLOCK, "encrypt": False},
        "checkpoint": {"every_s": 2.0, "every_commits": 10},
    }


@dataclass(slots=True)
class Outcome:
    """What one mode's storm came to."""

    mode: str
    jobs: int = 0
    random_kills: int = 0
    boundary_kills: int = 0
    watchdog_kills: int = 0
    missing: int = 0
    doubled: int = 0
    rollbacks: int = 0
    aborted: int = 0
    seconds: float = 0.0
    boundaries_hit: int = 0
    boundaries_missed: list[str] = field(default_factory=list)
    by_kind: dict[str, int] = field(default_factory=dict)
    problem: str = ""

    @property
    def kills(self) -> int:
        return self.random_kills + self.boundary_kills + self.watchdog_kills

    @property
    def good(self) -> bool:
        return not (self.missing or self.doubled or self.boundaries_missed or self.problem)


class Storm:
    """One pool, one mode."""

    def __init__(self, mode: str, kills: int, samples: int, replication: int, seed: int, place: Path) -> None:
        self.mode, self.kills, self.samples, self.replication = mode, kills, samples, replication
        self.place = place
        self.random = random.Random(f"{seed} {mode}")
        self.boundaries = Boundaries(place / "failpoints")
        self.outcome = Outcome(mode)
        self.pause = threading.Event()
        self.pool = self._pool()
        self.next_kill = 0.0
        self.next_trouble = 0.0
        self.armed_at: dict[str, tuple[Any, float]] = {}
        self.raging = False

    def _pool(self) -> Pool:
        return Pool(
            self.place / "pool", workers=3, shard_nodes=2 * self.replication, environment=self.boundaries.environment
        )

    # -- one storm --------------------------------------------------------------------------------------------

    def run(self) -> Outcome:
        began = time.monotonic()
        self.pool.start()
        try:
            self.pool.wait_ready()
            self._job(0)  # the dry run: which boundaries are there?
            self.raging = True
            self._arm_rare()
            while not self._enough() and self.outcome.jobs < JOBS_MAX:
                self._job(self.outcome.jobs)
        except (MedleyError, TimeoutError) as error:
            self.outcome.problem = str(error)
        finally:
            self.boundaries.disarm()
            self.pool.stop()
        self._count()
        self.outcome.seconds = round(time.monotonic() - began, 1)
        return self.outcome

    def _count(self) -> None:
        out, fired = self.outcome, self.boundaries.fired()
        out.boundary_kills = out.boundaries_hit = len(fired)
        out.boundaries_missed = sorted(self._wanted() - fired)

    def _wanted(self) -> set[str]:
        return {n for n in self.boundaries.seen() if n.startswith(SIDES)}

    def _enough(self) -> bool:
        met = self._wanted() <= self.boundaries.fired()
        return met and self.outcome.random_kills >= self.kills and self.outcome.watchdog_kills > 0

    def _job(self, number: int) -> None:
        """One epoch, from submission to proven."""
        began = time.monotonic()
        samples = self.samples if number else max(1024, self.samples // 4)
        job = self._submit(f"proof-{self.mode}-{number}", samples)
        seen = self._follow(job)
        if seen["state"] != "done":
            raise MedleyError(f"job {job} is {seen['state']}: {seen['reason']}")
        self._prove(job, seen, samples)
        self.outcome.jobs += 1
        self.outcome.rollbacks += seen["rollbacks"]
        self.outcome.aborted += seen["aborted"]
        left = len(self._wanted() - self.boundaries.fired())
        say(
            f"{self.mode} job {number}: {seen['version']} versions, {seen['rollbacks']} rollbacks, "
            f"{time.monotonic() - began:.0f} s; so far {self.outcome.random_kills} random kills, "
            f"{len(self.boundaries.fired())} boundaries, {left} left, "
            f"missing {self.outcome.missing}, doubled {self.outcome.doubled}"
        )

    def _submit(self, name: str, samples: int) -> str:
        """Until the coordinator has it, once: whether it heard us the first time, its list of jobs says."""
        wanted = spec(self.mode, samples, self.replication) | {"name": name}
        end = time.monotonic() + STALL_S
        while time.monotonic() < end:
            try:
                for job in self.pool.operator.ask("jobs", timeout_s=10)["jobs"]:
                    if job["name"] == name:
                        return str(job["job"])
                self.pool.operator.ask("submit", {"spec": wanted}, timeout_s=10)
            except Unavailable:
                self._weather({})
                self.pause.wait(STEP_S)
        raise TimeoutError(f"job {name} could not be submitted within {STALL_S:.0f} s")

    def _follow(self, job: str) -> dict[str, Any]:
        """Rage until the job is over."""
        last: Any = None
        moved = time.monotonic()
        looked = 0.0
        while True:
            now = time.monotonic()
            if now - looked > 0.25:
                looked = now
                seen = self._ask(job)
                mark = (seen.get("state"), seen.get("version"), seen.get("generation"), seen.get("samples"))
                if seen and seen["state"] in ("done", "failed", "cancelled"):
                    return seen
                if seen and mark != last:
                    last, moved = mark, now
                if now - moved > STALL_S:
                    raise TimeoutError(f"job {job} has stood still for {STALL_S:.0f} s at {last}")
                if self._weather(seen):
                    moved = max(moved, time.monotonic() - STALL_S / 2)
            self.pause.wait(STEP_S)

    def _ask(self, job: str) -> dict[str, Any]:
        try:
            answer: dict[str, Any] = self.pool.operator.ask("job", {"job": job}, timeout_s=10)["job"]
        except Unavailable:
            return {}
        return answer

    # -- weather ----------------------------------------------------------------------------------------------

    def _weather(self, seen: dict[str, Any]) -> bool:
        """Kill and arm what is due; True if something was killed."""
        now = time.monotonic()
        if not self.raging:
            return False
        for side in SIDES:
            if self._due(side, seen, now):
                self._arm(side)
        self._provoke(seen, now)
        if now < self.next_kill or not self._due("random", seen, now):
            return False
        if self.outcome.random_kills >= self.kills and self._enough():
            return False  # until then it goes on: some boundaries are passed only when something else has died
        self.next_kill = now + self.random.expovariate(1 / BETWEEN_S)
        if self.outcome.random_kills >= self.kills // 2 and not self.outcome.watchdog_kills and seen:
            self._kill_watchdog()
            return True
        return self._kill_one()

    def _provoke(self, seen: dict[str, Any], now: float) -> None:
        """What is said only of checkpoints that cannot be written or read is said when that happens."""
        waits = {n.rpartition(".")[2] for n in self.boundaries.armed - self.boundaries.fired()}
        if now < self.next_trouble or not waits & TROUBLE:
            return
        self.next_trouble = now + TROUBLE_S
        if "PartFailed" in waits:
            self.boundaries.arm("checkpoint.part.before_rename", FULL)
        if waits & {"LoadFailed", "CheckpointDamaged"} and 2 * seen.get("samples", 0) < seen.get("total", 0):
            self._damage(seen)

    def _damage(self, seen: dict[str, Any]) -> None:
        """One byte too many in the newest of several checkpoints, and a shard that has to load it."""
        sealed = sorted((self.place / "pool" / "checkpoints" / seen["job"]).glob("checkpoint-*/manifest.json"))
        engines = {n: pid for n, pid in processes(self.pool.pid).items() if kind_of(n) == "shard-engine"}
        if len(sealed) < 2 or not engines:
            return
        for part in sorted(sealed[-1].parent.glob("*.safetensors")):
            with open(part, "ab") as file:
                file.write(b"x")
        kill(engines[self.random.choice(sorted(engines))])

    def _kill_one(self) -> bool:
        """First which kind, then which one, so that the few are met as often as the many."""
        living = processes(self.pool.pid)
        kinds = sorted({kind_of(name) for name in living})
        if not kinds:
            return False
        kind = self.random.choice(kinds)
        name = self.random.choice(sorted(n for n in living if kind_of(n) == kind))
        if not kill(living[name]):
            return False
        self.outcome.random_kills += 1
        self.outcome.by_kind[kind] = self.outcome.by_kind.get(kind, 0) + 1
        return True

    def _kill_watchdog(self) -> None:
        """The whole house: everything below must go by itself, and a new pool on the same directory must carry on."""
        everyone = family(self.pool.pid)
        kill(self.pool.pid)
        self.pool.stop()
        _, left = psutil.wait_procs(everyone, timeout=15)
        if left:
            names = ", ".join(" ".join(p.cmdline()[2:4]) for p in left)
            raise TimeoutError(f"15 s after the watchdog was killed there still run: {names}")
        self.outcome.watchdog_kills += 1
        self.pool = self._pool()
        self.pool.start()

    def _arm_rare(self) -> None:
        for name in self._wanted():
            if name.rpartition(".")[2] in RARE:
                self.boundaries.arm(name)

    def _due(self, side: str, seen: dict[str, Any], now: float) -> bool:
        """When something was committed since the last time; or, while nothing hangs over this side, after a while.

        A storm, not a siege: a machine that is busy with other things needs its time to bring a process back.
        """
        mark, since = self.armed_at.get(side, (None, 0.0))
        present = (seen.get("generation"), seen.get("version"))
        patience = ARM_FIRST_S if present != mark else ARM_LAST_S
        waits = {n for n in self.boundaries.armed - self.boundaries.fired() if n.startswith(side)}
        if now - since < patience or (present == mark and waits):
            return False
        self.armed_at[side] = (present, now)
        return True

    def _arm(self, side: str) -> None:
        waiting = sorted(n for n in self._wanted() - self.boundaries.armed if n.startswith(side))
        if waiting:
            self.boundaries.arm(self.random.choice(waiting))

    # -- the proof --------------------------------------------------------------------------------------------

    def _prove(self, job: str, seen: dict[str, Any], samples: int) -> None:
        """By the ledger's own count, by the exported parameters, and by the last checkpoint."""
        root = self.place / "pool"
        layout = make_layout([TensorSpec("values", (samples,))], BLOCK)
        proofs = {
            "ledger": (seen["total"] - seen["samples"], seen["doubled"]),
            "export": miscounted(root / "exports" / job),
            "checkpoint": miscounted_values(read_checkpoint(root, job, seen["version"], layout)),
        }
        self.outcome.missing += max(missing for missing, _ in proofs.values())
        self.outcome.doubled += max(doubled for _, doubled in proofs.values())
        if any(any(counts) for counts in proofs.values()):
            say(f"{job} is wrong (missing, doubled): {proofs}")


def summary(outcomes: list[Outcome], kills: int) -> dict[str, Any]:
    """The last line."""
    return {
        "kills": sum(o.kills for o in outcomes),
        "samples_missing": sum(o.missing for o in outcomes),
        "samples_doubled": sum(o.doubled for o in outcomes),
        "seconds": round(sum(o.seconds for o in outcomes), 1),
        "boundaries_missed": sum(len(o.boundaries_missed) for o in outcomes),
        "good": all(o.good and o.random_kills >= kills for o in outcomes),
        "modes": [asdict(o) | {"kills": o.kills} for o in outcomes],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--kills", type=int, default=50, help="random kills in each mode, besides the boundaries")
    parser.add_argument("--mode", choices=("all", *MODES), default="all")
    parser.add_argument("--replication", type=int, choices=(1, 2), default=1)
    parser.add_argument("--samples", type=int, default=6144, help="in each job")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dir", type=Path, help="keep everything here (default: a temporary directory)")
    parser.add_argument("--json", default="-", help="where the last line goes; - is standard output")
    options = parser.parse_args()
    modes = MODES if options.mode == "all" else (options.mode,)
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory(prefix="medley-storm-", ignore_cleanup_errors=True) as folder:
        for mode in modes:
            place = (options.dir or Path(folder)) / mode
            storm = Storm(mode, options.kills, options.samples, options.replication, options.seed, place)
            outcomes.append(storm.run())
            if outcomes[-1].problem:
                say(f"{mode}: {outcomes[-1].problem}")
    result = summary(outcomes, options.kills)
    if options.json != "-":
        Path(options.json).write_text(json.dumps(result) + "\n")
    print(json.dumps(result), flush=True)
    raise SystemExit(0 if result["good"] else 1)


if __name__ == "__main__":
    main()
