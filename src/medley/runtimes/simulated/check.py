"""Many seeds, each a random world under random faults with every invariant watched; over several processes.

A seed is a world that trains, and each `SERVED`-th one another that serves (`serving`). Its process is started afresh
(`python -m medley.runtimes.simulated.check FIRST STEP COUNT KIND`) and says one line of JSON a seed, so the digest over
all seeds does not depend on how many processes shared them. Leaves to others: what a world consists of (`drawing`),
what happens to it (`faults`), what must hold (`checkers`).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from pathlib import Path
from queue import SimpleQueue
from typing import IO, Literal

import msgspec

from medley.runtimes.clock import SystemClock
from medley.runtimes.simulated.coverage import ENOUGH, Coverage, Pair
from medley.runtimes.simulated.seeds import Seed

SERVED = 2  # every so-manieth seed has a world that serves, too
TWICE = 50  # every so-manieth seed is run a second time: M1

Kind = Literal["all", "serving"]


@dataclass(slots=True)
class Findings:
    """What is known so far."""

    first: int
    wanted: int
    kind: Kind = "all"
    coverage: Coverage = field(default_factory=Coverage)
    seeds: int = 0
    events: int = 0
    virtual_s: float = 0.0
    seconds: float = 0.0
    violations: list[Seed] = field(default_factory=list)
    digests: dict[int, str] = field(default_factory=dict)

    def add(self, seed: Seed) -> None:
        self.seeds += 1
        self.events += seed.events
        self.virtual_s += seed.virtual_s
        self.digests[seed.seed] = seed.digest
        self.coverage.add(seed.pairs())
        if seed.invariant:
            self.violations.append(seed)

    @property
    def digest(self) -> str:
        whole = blake2b(digest_size=16)
        for number in sorted(self.digests):
            whole.update(f"{number} {self.digests[number]}\n".encode())
        return whole.hexdigest()

    @property
    def lost(self) -> list[int]:
        """Seeds that were to be run and of which nothing was heard."""
        return [seed for seed in range(self.first, self.first + self.wanted) if seed not in self.digests]

    def uncovered(self) -> list[Pair]:
        """Pairs that were missed; too few seeds are not judged."""
        return self.coverage.uncovered(required(self.kind)) if self.seeds >= ENOUGH else []


def required(kind: Kind) -> list[Pair]:
    """Every pair of fault and operation that a check of many seeds must meet."""
    from medley.runtimes.simulated import faults
    from medley.runtimes.simulated.serving import faults as of_servings

    return of_servings.required() if kind == "serving" else [*faults.required(), *of_servings.required()]


def run_seed(seed: int, trace: Path | None = None, kind: Kind = "all") -> Seed:
    """Its worlds to their ends. Every `TWICE`-th seed is run twice, and must be the same both times."""
    found = _once(seed, trace, kind)
    if seed % TWICE == 0 and not found.invariant:
        again = _once(seed, None, kind)
        if again.digest != found.digest:
            sentence = f"two runs of it differ: {found.digest} and {again.digest}"
            return replace(found, invariant="M1", sentence=sentence)
    return found


def _once(seed: int, trace: Path | None, kind: Kind) -> Seed:
    """`trace` is the story of the training, or of the serving where there is nothing else."""
    from medley.runtimes.simulated.faults.storm import weather
    from medley.runtimes.simulated.serving import storm

    if kind == "serving":
        return storm.weather(seed, trace)
    found = weather(seed, trace)
    if found.invariant or seed % SERVED:
        return found
    served = storm.weather(seed)
    return Seed(
        seed,
        blake2b(f"{found.digest} {served.digest}".encode(), digest_size=16).hexdigest(),
        found.virtual_s + served.virtual_s,
        found.events + served.events,
        found.met | served.met,
        served.invariant,
        served.sentence,
        served.serving,
    )


def check(first: int, seeds: int, jobs: int, told: Callable[[Seed, Findings], None], kind: Kind = "all") -> Findings:
    """Run `seeds` seeds from `first` on, over `jobs` processes; `told` hears of each. KeyboardInterrupt passes through
    after `told` has heard of all that were finished."""
    clock = SystemClock()
    began_ns = clock.now_ns()
    findings = Findings(first, seeds, kind)
    for seed in _here(first, seeds, kind) if jobs <= 1 else _elsewhere(first, seeds, min(jobs, seeds), kind):
        findings.add(seed)
        findings.seconds = (clock.now_ns() - began_ns) / 1e9
        told(seed, findings)
    return findings


def traced(seed: int, trace: Path, told: Callable[[Seed, Findings], None], kind: Kind = "all") -> Findings:
    """One seed, once, with its story in a file."""
    clock = SystemClock()
    began_ns = clock.now_ns()
    findings = Findings(seed, 1, kind)
    found = run_seed(seed, trace, kind)
    findings.add(found)
    findings.seconds = (clock.now_ns() - began_ns) / 1e9
    told(found, findings)
    return findings


def command_of(seed: Seed) -> str:
    """The command that tells this seed's story."""
    number, serving = seed.seed, "--serving " if seed.serving else ""
    return f"medley simulate --check {serving}--seeds 1 --first-seed {number} --trace seed-{number}.trace"


def _here(first: int, seeds: int, kind: Kind) -> Iterator[Seed]:
    for seed in range(first, first + seeds):
        yield run_seed(seed, kind=kind)


def _elsewhere(first: int, seeds: int, jobs: int, kind: Kind) -> Iterator[Seed]:
    """Process i takes seeds i, i + jobs, ...: they are alike enough to need no queue. Of one that is killed nothing
    more is heard: `Findings.lost` has its last seeds.
    """
    said: SimpleQueue[bytes | int] = SimpleQueue()
    processes = [_process(first + i, jobs, (seeds - i + jobs - 1) // jobs, kind) for i in range(jobs)]
    listeners = [threading.Thread(target=_listen, args=(p.stdout, said), daemon=True) for p in processes]
    try:
        for listener in listeners:
            listener.start()
        ended = 0
        while ended < jobs:
            line = said.get()
            if isinstance(line, int):
                ended += 1
            else:
                yield msgspec.json.decode(line, type=Seed)
    finally:
        for process, listener in zip(processes, listeners, strict=True):
            process.kill()
            process.wait()
            listener.join()  # the pipe has ended with its process


def _process(first: int, step: int, count: int, kind: Kind) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "medley.runtimes.simulated.check", str(first), str(step), str(count), kind]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)


def _listen(pipe: IO[bytes], said: SimpleQueue[bytes | int]) -> None:
    with pipe:
        for line in pipe:
            said.put(line)
    said.put(0)


def main() -> None:
    """One process of several: FIRST STEP COUNT KIND."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    first, step, count = map(int, sys.argv[1:4])
    kind: Kind = "serving" if sys.argv[4] == "serving" else "all"
    encoder = msgspec.json.Encoder()
    try:
        for number in range(count):
            sys.stdout.buffer.write(encoder.encode(run_seed(first + number * step, kind=kind)) + b"\n")
            sys.stdout.buffer.flush()
    except BrokenPipeError:
        os._exit(0)  # nobody listens any more


if __name__ == "__main__":
    main()
