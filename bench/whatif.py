"""Whether `medley whatif` tells the truth: a described fleet of six mixed machines against a real pool of that speed.

    python bench/whatif.py [--modes sync async local-sgd] [--rounds 40] [--out FILE]
    python bench/whatif.py --steps

Six workers train the one-hot task on this machine. Their steps are waits, as long as the described devices would take
for the task's arithmetic (devices of the library, slowed down alike until two cores can host all six), so what is
compared is everything else: rounds, grace, staleness, transfers, commits. The time from the first base to the last
commit is held against the estimate's. Prints one line of JSON; `error` is the largest relative difference.

`--steps`: real leases of two language models on one thread against `policies.costs`, for a device of this machine's
measured speed; processor time, so that other programs do not count.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import nn
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from medley.engines.probe import probe
from medley.engines.task import Loss, Task
from medley.engines.train import TrainEngine
from medley.engines.worker import WorkerEngine
from medley.jobs.listening import OVER, live, patiently
from medley.jobs.machines import TRAINING_SHARE, Fleet, Group
from medley.jobs.whatif import Question, estimate
from medley.models.count import Vocabulary
from medley.models.load import load_model
from medley.policies.costs import Size, lease_ns, train_flops
from medley.policies.devices import DEVICES, described
from medley.protocol.messages import Span
from medley.protocol.plan import Plan
from medley.protocol.spec import Checkpoint, Data, JobSpec, Model, Optimizer, Placement, Sync, Train
from medley.runtimes.local import Pool
from medley.runtimes.simulated.setup import Machine, Workload

TARGET = 0.20
KINDS = ("desktop-ryzen-7950x", "apple-m4", "apple-m2", "laptop-i7-11800h", "laptop-i5-8250u", "cloud-2vcpu")
SLOWED = 50_000  # each device by the same factor
PARAMETERS = 50_000  # of the one-hot task: as many as it has samples
BATCH = 8
KEEPERS = 2
LOCAL_STEPS = 4


def spec(mode: str, rounds: int) -> JobSpec:
    """One job of `rounds` rounds of six leases."""
    steps = LOCAL_STEPS if mode == "local-sgd" else 1
    samples = rounds * len(KINDS) * BATCH * steps
    train = Train(
        epochs=samples / PARAMETERS,
        batch_samples=BATCH,
        optimizer=Optimizer("sgd", lr=1.0, clip_norm=0.0, schedule="constant", weight_decay=0.0, warmup_fraction=0.0),
        sync=Sync(mode, local_steps=steps),  # type: ignore[arg-type]
        aggregation="sum",
        eval_every_commits=0,
    )
    return JobSpec(
        name=mode,
        task="medley.engines.proof:OneHot",
        task_options={"samples": PARAMETERS, "step_ms": step_s(KINDS[0]) * 1000},
        data=Data(source="task"),
        train=train,
        placement=Placement(shards=2, encrypt=False),
        checkpoint=Checkpoint(every_s=30.0),
    )


def step_s(kind: str) -> float:
    """How long one step's arithmetic takes on a slowed device."""
    size = Question(JobSpec(), workload()).size(DEVICES[kind])
    return train_flops(size, BATCH) / (DEVICES[kind].flops_per_s / SLOWED)


def workload() -> Workload:
    return Workload(samples=PARAMETERS, heldout=8, parameters=PARAMETERS, tokens_per_sample=1)


def fleet() -> Fleet:
    """The pool below, described."""
    slowed = [replace(DEVICES[kind], flops_per_s=DEVICES[kind].flops_per_s / SLOWED) for kind in KINDS]
    groups = [Group(d.kind, (Machine(f"worker-{n}", d, shard=False),)) for n, d in enumerate(slowed, start=1)]
    keeper = DEVICES["cloud-2vcpu"]
    groups += [Group(f"shard-{n}", (Machine(f"shard-{n}", keeper, worker=False),)) for n in range(1, KEEPERS + 1)]
    return Fleet(tuple(groups), "described by the benchmark")


def real(job: JobSpec, pool: Pool) -> tuple[float, int]:
    """(seconds from the first base to the end of the training, commits) of a real run."""
    operator = pool.operator
    name = operator.ask("submit", {"spec": msgspec.to_builtins(job)})["job"]
    said: dict[str, Any] = patiently(operator, name)["job"]
    while said["state"] not in OVER:
        for _ in live(operator, name):
            pass
        said = patiently(operator, name)["job"]
    if said["state"] != "done" or said["missing"] or said["doubled"]:
        raise SystemExit(f"the real run is {said['state']}: {said['reason']}")
    return float(said["elapsed_s"]), int(said["version"])


def compared(mode: str, rounds: int, pool: Pool) -> dict[str, float]:
    job = spec(mode, rounds)
    made = estimate(Question(job, workload()), fleet())
    estimated_s = made.whole_s - made.start_s
    real_s, commits = real(job, pool)
    return {
        "real_s": round(real_s, 2),
        "estimated_s": round(estimated_s, 2),
        "error": round(estimated_s / real_s - 1, 4),
        "real_commits": commits,
        "estimated_commits": made.commits,
    }


# -- single steps -------------------------------------------------------------------------------------------------

WINDOW, VOCABULARY = 128, 4096


class Tokens(Task):
    """Noise, which costs what text costs."""

    def __init__(self, base: str) -> None:
        self._base = base
        self._rows = torch.randint(0, VOCABULARY, (256, WINDOW + 1), generator=torch.Generator().manual_seed(1))

    def model(self) -> nn.Module:
        return load_model(Model(base=self._base), 0, Vocabulary(VOCABULARY))

    def dataset(self) -> range:
        return range(len(self._rows))

    def micro_batch(self) -> int:
        return 2048 // WINDOW

    def collate(self, rows: list[int]) -> torch.Tensor:
        return self._rows[rows]

    def loss(self, model: nn.Module, batch: torch.Tensor) -> Loss:
        scores = model(input_ids=batch[:, :-1]).logits.flatten(0, 1)
        total = functional.cross_entropy(scores, batch[:, 1:].flatten(), reduction="sum")
        return Loss(total, len(scores), tokens=len(scores))


def steps() -> dict[str, Any]:
    """Real and reckoned seconds of leases of 4, 16 and 32 windows."""
    torch.set_num_threads(1)
    found = probe(time.process_time_ns)
    here = described({"gflops": found.fp32_gflops * TRAINING_SHARE, "memory_gb_per_s": 10})
    said: dict[str, Any] = {"bench": "whatif steps", "fp32_gflops": round(found.fp32_gflops, 1)}
    for base in ("llama-tiny", "llama-10m"):
        task, job = Tokens(base), JobSpec(model=Model(base=base))
        trained = TrainEngine(task, job.train, job.placement, torch.float32, time.process_time_ns)
        engine = WorkerEngine(task, Plan(job, 256, 0, trained.layout.tensors, ()), 1, 0, time.process_time_ns)
        start = engine.base()
        start.flat.copy_(trained.initial())
        engine.arrived(0, start)
        size = Size(trained.layout.numel, 0, WINDOW)
        for batch in (4, 16, 32):
            real_s = min(_lease_s(engine, f"{base}/{batch}/{n}", batch) for n in range(4))
            reckoned_s = lease_ns(here, size, job.train, batch) / 1e9
            figures = {"real_s": round(real_s, 3), "reckoned_s": round(reckoned_s, 3)}
            said[f"{base} x {batch}"] = figures | {"error": round(reckoned_s / real_s - 1, 3)}
    return said


def _lease_s(engine: WorkerEngine, update: str, batch: int) -> float:
    began = time.process_time()
    engine.compute(update, Span(0, 0, batch), 1, 1e-3, False, lambda: False)
    spent_s = time.process_time() - began
    engine.settle(update, False)
    return spent_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--modes", nargs="+", default=["sync", "async", "local-sgd"])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--steps", action="store_true")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    line = json.dumps(steps() if given.steps else pools(given.modes, given.rounds))
    print(line)
    if given.out:
        given.out.write_text(line + "\n", encoding="utf-8")


def pools(modes: list[str], rounds: int) -> dict[str, Any]:
    factors = tuple(step_s(kind) / step_s(KINDS[0]) for kind in KINDS)
    found: dict[str, Any] = {"bench": "whatif", "target": TARGET, "machines": len(KINDS)}
    with tempfile.TemporaryDirectory(prefix="medley-whatif-") as folder:
        with Pool(Path(folder), len(KINDS), KEEPERS, compute_factors=factors) as pool:
            pool.wait_ready(180.0)
            for mode in modes:
                found[mode] = compared(mode, rounds, pool)
    found["error"] = max(abs(found[mode]["error"]) for mode in modes)
    found["ok"] = found["error"] <= TARGET
    return found


if __name__ == "__main__":
    main()
