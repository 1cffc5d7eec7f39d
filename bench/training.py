"""What distribution costs: tokens per second of a job on a pool, against the same engine in a bare loop.

One worker, one shard, a coordinator, real sockets, a 10 M-parameter Llama, about 2,048 tokens a step in bf16, nothing
compressed. The bare loop has the same task, leases, engine and threads, and AdamW, in one process. Both take turns, and
each stretch of the pool is compared with the bare stretches before and after it, so that a busy machine slows both;
the median of all rounds counts. Prints one line of JSON:

    python bench/training.py [--steps 12] [--rounds 3] [--threads 2] [--only h1 h1_encrypted h16] [--out FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from medley.protocol.spec import Checkpoint, Data, JobSpec, Model, Optimizer, Placement, Sync, Train
from medley.runtimes.local import Pool

ENDLESS = 100_000.0
WARM = 3  # steps of every stretch that are not counted
LOCAL_STEPS = 16


@dataclass(frozen=True, slots=True)
class Contender:
    """One line of the table."""

    name: str
    encrypt: bool = False
    local_steps: int = 1


CONTENDERS = (
    Contender("h1"),
    Contender("h1_encrypted", encrypt=True),
    Contender("h16", local_steps=LOCAL_STEPS),
)


def job(contender: Contender, threads: int, samples: int) -> JobSpec:
    """The job of the table; contenders differ in one thing each."""
    local = contender.local_steps > 1
    sync = Sync(mode="local-sgd" if local else "sync", local_steps=contender.local_steps)
    return JobSpec(
        name=contender.name.replace("_", "-"),
        model=Model(base="llama-10m", vocab_size=4096, context_tokens=512, dtype="bf16"),
        data=Data(source="builtin"),
        train=Train(
            epochs=ENDLESS,
            batch_samples=samples,
            threads=threads,
            optimizer=Optimizer(lr=1e-4, schedule="constant"),
            sync=sync,
            eval_every_commits=0,
        ),
        placement=Placement(shards=1, encrypt=contender.encrypt),
        checkpoint=Checkpoint(every_s=3600.0),
    )


# -- the bare loop, in a process of its own ---------------------------------------------------------------------


def bare(threads: int, samples: int) -> None:
    """Answer each line "n" on standard input with the tokens per second of n steps."""
    import torch

    from medley.data.prepare import prepare
    from medley.engines.causal_lm import open_causal_lm, prepare_tokenizer
    from medley.engines.inner import InnerOptimizer
    from medley.engines.train import TrainEngine, Work

    spec = job(CONTENDERS[0], threads, samples)
    with tempfile.TemporaryDirectory() as folder:
        data, tokenizer = Path(folder) / "data", Path(folder) / "tokenizer"
        prepare_tokenizer(spec, prepare(spec.data, spec.train.seed, data), tokenizer)
        task = open_causal_lm(spec, data, tokenizer, torch.bfloat16)
        engine = TrainEngine(task, spec.train, spec.placement, torch.bfloat16, time.monotonic_ns)
        optimizer = InnerOptimizer(spec.train.optimizer, engine.layout, torch.device("cpu"))
        optimizer.start(engine.initial())
        total, at = len(task.dataset()), 0
        print(json.dumps({"parameters": engine.layout.numel}), flush=True)
        for line in sys.stdin:
            tokens, began = 0, 0.0
            for step in range(WARM + int(line)):
                if step == WARM:
                    tokens, began = 0, time.perf_counter()
                works = [Work((_span(at + n, total, samples),)) for n in (0, 1)]
                engine.prefetch(works[0])
                engine.prefetch(works[1])
                engine.load_base(at, optimizer.values)
                result = engine.run(works[0], 1e-4)
                optimizer.step(result.update.div_(result.weight), 1e-4)
                tokens, at = tokens + result.tokens, at + 1
            rate = tokens / (time.perf_counter() - began)
            print(json.dumps({"tokens_per_s": rate, "tokens": tokens / int(line)}), flush=True)
        engine.close()


def _span(number: int, total: int, samples: int) -> tuple[int, int, int]:
    a_round = total // samples
    start = number % a_round * samples
    return number // a_round, start, start + samples


class Bare:
    """The parent's end of the bare loop."""

    def __init__(self, threads: int, samples: int) -> None:
        command = [sys.executable, __file__, "--bare", "--threads", str(threads), "--samples", str(samples)]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self.parameters: int = self._line()["parameters"]

    def run(self, steps: int) -> dict[str, float]:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{steps}\n")
        self._process.stdin.flush()
        return self._line()

    def _line(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def stop(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)


# -- the pool ---------------------------------------------------------------------------------------------------


def pooled(pool: Pool, spec: JobSpec, steps: int) -> dict[str, float]:
    """Tokens per second of `steps` optimiser steps, measured between commits of a job that is then cancelled."""
    commits = -(-steps // spec.train.sync.local_steps)
    name = pool.operator.ask("submit", {"spec": msgspec.to_builtins(spec)})["job"]
    seen: list[dict[str, Any]] = []
    warm = WARM if spec.train.sync.local_steps == 1 else 1
    for event in pool.operator.follow("events", {"job": name}):
        if event["kind"] == "state" and event["state"] == "failed":
            raise SystemExit(f"the job failed: {event['reason']}")
        if event["kind"] == "commit":
            seen.append(event)
        if len(seen) > warm + commits:
            break
    pool.operator.ask("cancel", {"job": name})
    _until_idle(pool)
    counted = seen[warm + 1 :]
    seconds = (counted[-1]["wall_ns"] - seen[warm]["wall_ns"]) / 1e9
    tokens = sum(e["tokens"] for e in counted)
    return {"tokens_per_s": tokens / seconds, "tokens": tokens / len(counted) / spec.train.sync.local_steps}


def _until_idle(pool: Pool) -> None:
    """Engines of a cancelled job are gone before the bare loop has its turn."""
    while any(j["state"] not in ("cancelled", "done", "failed") for j in pool.operator.ask("jobs")["jobs"]):
        time.sleep(0.1)
    time.sleep(1.0)


def measure(options: argparse.Namespace, wanted: list[Contender]) -> dict[str, Any]:
    """Rounds of bare, contender, bare, contender, ..., bare."""
    rates: dict[str, list[float]] = {c.name: [] for c in wanted}
    bare_rates: list[float] = []
    ratios: dict[str, list[float]] = {c.name: [] for c in wanted}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="medley-bench-")))
        loop = Bare(options.threads, options.samples)
        stack.callback(loop.stop)
        pools: dict[bool, Pool] = {}
        for encrypt in sorted({c.encrypt for c in wanted}):
            made = Pool(folder / f"pool-{encrypt}", 1, options.shard_nodes, encrypt=encrypt)
            pools[encrypt] = stack.enter_context(made)
            made.wait_ready()
        bare_rates.append(loop.run(options.steps)["tokens_per_s"])
        for _ in range(options.rounds):
            for contender in wanted:
                spec = job(contender, options.threads, options.samples)
                got = pooled(pools[contender.encrypt], spec, max(options.steps, 3 * contender.local_steps))
                after = loop.run(options.steps)
                bare_rates.append(after["tokens_per_s"])
                rates[contender.name].append(got["tokens_per_s"])
                ratios[contender.name].append(got["tokens_per_s"] / statistics.mean(bare_rates[-2:]))
                print(f"{contender.name}: {ratios[contender.name][-1]:.3f} {got} bare {after}", file=sys.stderr)
    return {
        **{f"ratio_{name}": round(statistics.median(found), 3) for name, found in ratios.items()},
        "parameters": loop.parameters,
        "tokens_a_step": round(got["tokens"]),
        "tokens_per_s": {
            "bare": round(statistics.median(bare_rates)),
            **{name: round(statistics.median(found)) for name, found in rates.items()},
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="A job on a pool against the same engine in a bare loop.")
    parser.add_argument("--steps", type=int, default=12, help="optimiser steps of a stretch (default 12)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds whose median counts (default 3)")
    parser.add_argument(
        "--threads", type=int, default=os.cpu_count() or 1, help="torch threads of both (default: cores)"
    )
    parser.add_argument("--samples", type=int, default=58, help="questions of one step (default 58: some 2,048 tokens)")
    parser.add_argument("--shard-nodes", type=int, default=1, help="0 lets the worker's machine hold the shard")
    parser.add_argument("--only", nargs="+", choices=[c.name for c in CONTENDERS], help="contenders to run")
    parser.add_argument("--out", help="also write the line to this file")
    parser.add_argument("--bare", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.bare:
        bare(options.threads, options.samples)
        return
    wanted = [c for c in CONTENDERS if not options.only or c.name in options.only]
    figure = {"figure": "training_overhead", "rounds": options.rounds, **measure(options, wanted)}
    line = json.dumps(figure)
    print(line)
    if options.out:
        Path(options.out).write_text(line + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
