"""How fast the simulator is: events a second against SimPy, virtual against real time, one seed in two processes.

    python bench/simulator.py
    python bench/simulator.py --seeds 1000
    python bench/simulator.py --scale

The last line is JSON. Times are of the processor, ratios within one run on one machine; SimPy (the extra `bench`) is
measured between the others. `--scale` is 10,000 workers and 100,000 jobs for one virtual hour, by itself.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from random import Random
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import simpy

from medley.policies.devices import Device
from medley.protocol.conditions import PRESETS, Conditions
from medley.protocol.spec import Checkpoint, JobSpec, Optimizer, Placement, Sync, Train
from medley.runtimes.simulated import kernel as kernel_module
from medley.runtimes.simulated.kernel import MS, Kernel, S
from medley.runtimes.simulated.setup import Arrival, Machine, Setup, Workload
from medley.runtimes.simulated.world import World

TIMEOUTS = 200_000
COMPILED = not kernel_module.__file__.endswith(".py")  # by MEDLEY_COMPILED=1, see docs/simulate.md
PROCESSES = 100  # at once, in SimPy and in the kernel
DEVICE = Device("desktop", 1e12, 16 << 30, 4e10, 100, 30, 0, "a round number")


def say(*words: object) -> None:
    print(*words, file=sys.stderr, flush=True)


def rate(run: Callable[[], int]) -> float:
    began = time.process_time()
    return run() / (time.process_time() - began)


# -- bare events --------------------------------------------------------------------------------------------------


def simpy_timeouts() -> int:
    """The usual measure: processes that do nothing but wait."""
    environment = simpy.Environment()

    def process() -> Iterator[Any]:
        while True:
            yield environment.timeout(1)

    for _ in range(PROCESSES):
        environment.process(process())
    environment.run(until=TIMEOUTS // PROCESSES)
    return TIMEOUTS


def kernel_timeouts() -> int:
    kernel = Kernel(1)

    def again() -> None:
        kernel.after(S, again)

    for _ in range(PROCESSES):
        kernel.after(S, again)
    kernel.run(TIMEOUTS // PROCESSES * S)
    return kernel.steps


# -- training -----------------------------------------------------------------------------------------------------


def training(step_s: float, steps: int, rounds: int, heartbeat_ms: int) -> Setup:
    """100 workers on good links beside four machines that keep parameters; `rounds` of all of them."""
    parameters, tokens, workers = 1_000_000, 256, 100
    batch = max(1, int(step_s * DEVICE.flops_per_s / (6 * parameters * tokens)))
    local = steps > 1
    leases = 4 if local else workers  # in one epoch: what every machine has to fetch stays small
    spec = JobSpec(
        name="job",
        train=Train(
            batch_samples=batch,
            epochs=workers * rounds / leases,
            optimizer=Optimizer(kind="sgd", schedule="constant"),
            sync=Sync(mode="local-sgd" if local else "sync", local_steps=steps),
            eval_every_commits=0,
        ),
        placement=Placement(shards=2, block_elements=1 << 20),
        checkpoint=Checkpoint(every_s=600.0),
    )
    link = PRESETS["good"]
    server = Conditions(rtt_ms=1, up_bytes_per_s=1.25e9, down_bytes_per_s=1.25e9)
    machines = [Machine(f"w{i:03}", DEVICE, link, shard=False) for i in range(workers)]
    machines += [Machine(f"s{i}", DEVICE, server, worker=False) for i in range(2)]
    work = Workload(batch * steps * leases, 1, parameters, 0, tokens)
    return Setup(tuple(machines), (Arrival("job", spec, work),), arithmetic="sizes", heartbeat_ms=heartbeat_ms)


def train(setup: Setup, most_s: float) -> dict[str, Any]:
    """Virtual seconds to the end of the job, or to `most_s` real ones, against real time."""
    world = World(setup, seed=1)
    began = time.process_time()
    end = began + most_s

    while not world.is_over() and time.process_time() < end:  # asked seldom: to ask costs as much as an event
        world.run(world.kernel.now + 2 * setup.heartbeat_ms * MS)
    took = time.process_time() - began
    run = world.run_of("job")
    version = run.state.version if run is not None else 0
    return {
        "virtual_s": round(world.kernel.now / S, 1),
        "real_s": round(took, 2),
        "times_real_time": round(world.kernel.now / S / took, 1),
        "events": world.kernel.steps,
        "events_per_s": round(world.kernel.steps / took),
        "handled": world.trace.events,
        "commits": version,
        "finished": world.is_over(),
        "digest": world.digest(),
    }


def alone(step_s: float, steps: int, rounds: int, heartbeat_ms: int) -> dict[str, Any]:
    """In a process of its own: what one run leaves in memory would slow the next one down."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(_trained, step_s, steps, rounds, heartbeat_ms).result()


def _trained(step_s: float, steps: int, rounds: int, heartbeat_ms: int) -> dict[str, Any]:
    return train(training(step_s, steps, rounds, heartbeat_ms), 60)


# -- one seed, two processes --------------------------------------------------------------------------------------

SEEDS = """
import sys
from tests.simulation.worlds import run
for seed in range({first}, {last}):
    print(seed, run(seed).digest(), flush=True)
"""


def same_digests(seeds: int) -> dict[str, Any]:
    """Every seed in two processes whose strings hash differently."""
    root = Path(__file__).resolve().parent.parent
    code = SEEDS.format(first=0, last=seeds)
    began = time.process_time()
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": os.pathsep.join([str(root), *sys.path])},
            cwd=root,
            stdout=subprocess.PIPE,
            text=True,
        )
        for hash_seed in ("1", "2")
    ]
    first, second = (run.communicate()[0].splitlines() for run in runs)
    same = sum(a == b for a, b in zip(first, second, strict=False))
    return {"seeds": seeds, "same": same, "seconds": round(time.process_time() - began, 1)}


# -- scale --------------------------------------------------------------------------------------------------------


def crowd(workers: int, jobs: int, hours: float) -> Setup:
    """Tiny jobs that arrive evenly over the hour: one worker, one lease, one commit each."""
    random = Random(1)
    link = Conditions(rtt_ms=20, jitter_ms=2)
    machines = tuple(Machine(f"n{i:05}", DEVICE, link, joins_ns=int(random.random() * 10 * S)) for i in range(workers))
    spec = JobSpec(
        train=Train(batch_samples=8, optimizer=Optimizer(kind="sgd", schedule="constant"), eval_every_commits=0),
        placement=Placement(shards=1),
        checkpoint=Checkpoint(every_s=600.0, keep=1),
    )
    spec = with_one_worker(spec)
    work = Workload(8, 0, 10_000, 0, 64)
    span_ns = int(hours * 3600 * S)
    arrivals = tuple(
        Arrival(f"j{i:06}", spec, work, at_ns=int(15 * S + (span_ns - 75 * S) * i / jobs)) for i in range(jobs)
    )
    return Setup(machines, arrivals, arithmetic="sizes", heartbeat_ms=10_000)


def with_one_worker(spec: JobSpec) -> JobSpec:
    from dataclasses import replace

    return replace(spec, schedule=replace(spec.schedule, workers_max=1))


def scale(workers: int, jobs: int, hours: float, most_s: float) -> dict[str, Any]:
    setup = crowd(workers, jobs, hours)
    began = time.process_time()
    world = World(setup, seed=1)
    end, told = began + most_s, [began]

    def stop() -> bool:
        if world.kernel.steps % 4096:
            return False
        now = time.process_time()
        if now - told[0] > 10:
            told[0] = now
            say(f"{world.kernel.now / S:8.1f} virtual s after {now - began:6.1f} s, {world.over} of {jobs} jobs over")
        return now > end

    world.run(int(hours * 3600 * S), stop)
    took = time.process_time() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if platform.system() == "Darwin" else 1024)
    return {
        "workers": workers,
        "jobs": jobs,
        "virtual_s": round(world.kernel.now / S, 1),
        "real_s": round(took, 1),
        "jobs_over": world.over,
        "jobs_done": sum(state == "done" for state in world.states.values()),
        "events": world.kernel.steps,
        "events_per_s": round(world.kernel.steps / took),
        "peak_bytes": peak,
        "digest": world.digest(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--seeds", type=int, default=0, help="compare the digests of so many seeds as well")
    parser.add_argument("--scale", action="store_true", help="10,000 workers, 100,000 jobs, one virtual hour")
    parser.add_argument("--workers", type=int, default=10_000)
    parser.add_argument("--jobs", type=int, default=100_000)
    parser.add_argument("--hours", type=float, default=1.0)
    parser.add_argument("--most-s", type=float, default=1200.0, help="real seconds after which --scale gives up")
    options = parser.parse_args()
    result: dict[str, Any] = {
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "compiled": COMPILED,
    }
    if options.scale:
        result["scale"] = scale(options.workers, options.jobs, options.hours, options.most_s)
    else:
        result |= speeds()
    if options.seeds:
        result["digests"] = same_digests(options.seeds)
    print(json.dumps(result))


def speeds() -> dict[str, Any]:
    """Contenders take turns, so that a busy machine is busy for all; the best of three counts."""
    bare: dict[str, list[float]] = {"simpy": [], "kernel": []}
    for _ in range(3):
        bare["simpy"].append(rate(simpy_timeouts))
        bare["kernel"].append(rate(kernel_timeouts))
    say("training in steps of 1 s ...")
    steps = alone(1.0, 1, 120, 1000)
    bare["simpy"].append(rate(simpy_timeouts))
    say("training in rounds of 120 s ...")
    rounds = alone(1.0, 120, 60, 10_000)
    bare["simpy"].append(rate(simpy_timeouts))
    reference = max(bare["simpy"])
    return {
        "simpy_timeouts_per_s": round(reference),
        "kernel_events_per_s": round(max(bare["kernel"])),
        "kernel_against_simpy": round(max(bare["kernel"]) / reference, 3),
        "whole_against_simpy": round(steps["events_per_s"] / reference, 3),
        "steps_of_1_s": steps,
        "rounds_of_120_s": rounds,
    }


if __name__ == "__main__":
    main()
