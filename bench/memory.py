"""Peak memory of a coordinator, and of a shard's processes (node and engine together, torch included).

Counted are anonymous and shared pages, sampled twenty times a second while a job trains, checkpoints included, with
1, 2 and 4 workers. The shard's allowance is 1.25 x (parameters + optimiser state + staged updates as received + one
pinned copy) + 400 MiB. Prints one line of JSON; needs Linux, for /proc:

    python bench/memory.py [--model llama-10m] [--workers 1 2 4] [--commits 8] [--out FILE]
"""

from __future__ import annotations

import argparse
import json
import tempfile
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
import psutil

from medley.protocol.spec import Checkpoint, Data, JobSpec, Model, Optimizer, Placement, Sync, Train
from medley.runtimes.local import Pool

MIB = 1 << 20
COORDINATOR_MIB, SHARD_EXTRA_MIB, SHARD_FACTOR = 300, 400, 1.25
SAMPLE_S = 0.05


def held_nbytes(pids: Iterable[int]) -> int:
    """Anonymous and shared pages of these processes; one that has just ended counts nothing."""
    total = 0
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        except OSError:
            continue
        fields = dict(line.split(":", 1) for line in lines)
        total += sum(int(fields.get(name, "0 kB").split()[0]) * 1024 for name in ("RssAnon", "RssShmem"))
    return total


class Watch:
    """Samples groups of processes until it is stopped; `peaks` are in bytes."""

    def __init__(self, pool: Pool) -> None:
        self._root = psutil.Process(pool.pid)
        self._ended = threading.Event()
        self.peaks: dict[str, int] = {"coordinator": 0, "vault": 0, "preparer": 0, "shard": 0, "worker": 0}
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._ended.wait(SAMPLE_S):
            for name, pids in self._groups().items():
                self.peaks[name] = max(self.peaks[name], held_nbytes(pids))

    def _groups(self) -> dict[str, list[int]]:
        groups: dict[str, list[int]] = {}
        for process in self._root.children():
            try:
                line = " ".join(process.cmdline())
                below = process.children(recursive=True)
                if "process_coordinator" in line:
                    groups["coordinator"] = [process.pid]
                    for child in below:
                        groups.setdefault(child.cmdline()[-1], []).append(child.pid)
                elif "shard-1" in line:
                    groups["shard"] = [process.pid, *(child.pid for child in below)]
                elif "worker-1" in line:
                    groups["worker"] = [process.pid, *(child.pid for child in below)]
            except (psutil.Error, IndexError):
                continue
        return {name: pids for name, pids in groups.items() if name in self.peaks}

    def stop(self) -> dict[str, int]:
        self._ended.set()
        self._thread.join()
        return self.peaks


def job(model: str, workers: int) -> JobSpec:
    """Leases are small: what a shard holds does not depend on how long its workers compute."""
    return JobSpec(
        name="memory",
        model=Model(base=model, context_tokens=256),
        data=Data(source="builtin"),
        train=Train(
            epochs=1000,
            batch_samples=4,
            threads=1,
            optimizer=Optimizer(kind="adamw", lr=1e-4),
            sync=Sync(mode="sync", slots=workers),
            eval_every_commits=0,
        ),
        placement=Placement(shards=1, encrypt=False),
        checkpoint=Checkpoint(every_s=3600.0, every_commits=3, keep=1),
    )


def measure(model: str, workers: int, commits: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="medley-memory-") as folder:
        with Pool(Path(folder), workers, 1) as pool:
            pool.wait_ready()
            watch = Watch(pool)
            spec = msgspec.to_builtins(job(model, workers))
            name = pool.operator.ask("submit", {"spec": spec})["job"]
            saved, done = 0, 0
            for event in pool.operator.follow("events", {"job": name}):
                saved = event["nbytes"] if event["kind"] == "checkpoint" else saved
                done += event["kind"] == "commit"
                if saved and done >= commits:
                    break
            peaks = watch.stop()
            pool.operator.ask("cancel", {"job": name})
    parameters = saved / 3  # a checkpoint holds them and Adam's two moments
    # parameters, Adam's two moments, one staged update of each worker (uncompressed), one pinned copy
    allowed = SHARD_FACTOR * parameters * (1 + 2 + workers + 1) + SHARD_EXTRA_MIB * MIB
    return {
        "workers": workers,
        "coordinator_mib": round(peaks["coordinator"] / MIB),
        "vault_mib": round(peaks["vault"] / MIB),
        "shard_mib": round(peaks["shard"] / MIB),
        "shard_allowed_mib": round(allowed / MIB),
        "worker_mib": round(peaks["worker"] / MIB),
        "parameters_mib": round(parameters / MIB),
        "ok": peaks["coordinator"] <= COORDINATOR_MIB * MIB and peaks["shard"] <= allowed,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Peak memory of a coordinator and of a shard.")
    parser.add_argument("--model", default="llama-10m", help="preset to train (default llama-10m)")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4], help="numbers of workers (default 1 2 4)")
    parser.add_argument("--commits", type=int, default=8, help="commits to train for (default 8)")
    parser.add_argument("--out", help="also write the line to this file")
    options = parser.parse_args()
    runs = [measure(options.model, workers, options.commits) for workers in options.workers]
    figure = {"figure": "memory", "model": options.model, "coordinator_allowed_mib": COORDINATOR_MIB, "runs": runs}
    line = json.dumps(figure)
    print(line)
    if options.out:
        Path(options.out).write_text(line + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
