"""Generations that lose a machine at a random token: is every stream complete and the same, and how long was the pause?

    python bench/failover.py --generations 200 --json -

Four processes hold a small Llama in fp32 (`--survive 1`: each layer on two of them, KV copied). Each generation one of
the three that work is killed (SIGKILL), stopped (SIGSTOP) or cut off (its packets are dropped; needs root, in a network
namespace of its own) after a random token. Half of the answers are greedy, half sampled with a seed; each is compared
with the same one undisturbed. The pause is the longest wait between two tokens of that answer. The last line is JSON:
`generations`, `identical`, `pause_p50_s`, `pause_p95_s`, and all of them for each way to be hurt. With `--survive 0`
layers are loaded again each time.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.pipeline_rig import Rig, Told, checkpoint, rig

from medley.engines.sampling import Sampling
from medley.serving.fleet import ServeOptions

INSIDE = "MEDLEY_BENCH_NAMESPACE"
LAYERS, STAGES = 6, 4
PROMPTS = [[5 + (7 * p + 3 * i) % 250 for i in range(12 + 5 * p)] for p in range(6)]
TOKENS = 96
WAYS = ("kill", "stop", "cut")
ANSWER_S = 90.0


@dataclass(slots=True)
class Outcome:
    way: str
    identical: bool
    pause_s: float
    recovery: str


@dataclass(slots=True)
class Cut:
    """Drops every packet of some TCP ports, until `heal`."""

    ports: list[int] = field(default_factory=list)

    def drop(self, pid: int) -> bool:
        """False where the process has no connection (yet, or any more)."""
        connections = psutil.Process(pid).net_connections(kind="tcp")
        self.ports = sorted({c.laddr.port for c in connections})
        if not self.ports:
            return False
        _nft("add table inet medley", "add chain inet medley in { type filter hook input priority 0; }")
        ports = ", ".join(map(str, self.ports))
        _nft(
            f"add rule inet medley in tcp dport {{ {ports} }} drop",
            f"add rule inet medley in tcp sport {{ {ports} }} drop",
        )
        return True

    def heal(self) -> None:
        if self.ports:
            _nft("delete table inet medley")
            self.ports = []


def _nft(*rules: str) -> None:
    subprocess.run(["nft", "-f", "-"], input="\n".join(rules).encode(), check=True)


def sampling(number: int) -> Sampling:
    """Greedy and sampled in turn."""
    if number % 2:
        return Sampling(TOKENS, 0.9, 0.95, seed=number % 7, logprobs=0)
    return Sampling(TOKENS, logprobs=0)


def hurt(bench: Rig, way: str, name: str, pid: int | None, cut: Cut) -> bool:
    """False where the process that began this answer is there no more: one that only starts would hurt nobody."""
    if pid is None or bench.stages().get(name) != pid:
        return False
    if way == "cut":
        return cut.drop(pid)
    os.kill(pid, signal.SIGKILL if way == "kill" else signal.SIGSTOP)
    return True


async def generation(bench: Rig, number: int, way: str, chance: random.Random, cut: Cut) -> Told:
    """One answer, hurt once on its way. Where there was nobody to hurt, it does not count and is asked for again."""
    while True:
        told, struck = await attempt(bench, number, way, chance, cut)
        if struck:
            return told


async def attempt(bench: Rig, number: int, way: str, chance: random.Random, cut: Cut) -> tuple[Told, bool]:
    """The answer, and whether somebody was hurt on its way."""
    at = chance.randrange(4, TOKENS - 12)
    hops = bench.note()["pipelines"][0]["hops"]
    victim = chance.choice(hops)["machine"]
    pid = bench.stages().get(victim)
    struck = False

    def watch(told: int) -> None:
        nonlocal struck
        if told >= at and not struck:
            struck = hurt(bench, way, victim, pid, cut)

    async with asyncio.timeout(ANSWER_S):
        return await bench.ask(PROMPTS[number % len(PROMPTS)], sampling(number), watch), struck


async def undisturbed(bench: Rig) -> dict[tuple[int, int], list[int]]:
    """What each prompt leads to, for each way to draw."""
    out = {}
    for number in range(len(PROMPTS) * 14):
        key = (number % len(PROMPTS), number % 7 if number % 2 else -1)
        if key not in out:
            out[key] = (await bench.ask(PROMPTS[key[0]], sampling(number))).tokens
    return out


def run(generations: int, seed: int, survive: int, ways: tuple[str, ...], say: Any) -> list[Outcome]:
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="medley-failover-") as folder:
        model = checkpoint(Path(folder) / "model")
        options = ServeOptions("fp32", pins=_pins(), survive=survive, expected=STAGES, local=True, kv_tokens=4096)
        with rig(model, Path(folder) / "pool", STAGES, options) as bench:
            _whole(bench, survive)
            expected = asyncio.run(undisturbed(bench))
            return [_once(bench, n, chance, ways, expected, survive, say) for n in range(generations)]


def _pins() -> str:
    """Three work; the fourth is there for whoever dies."""
    return ",".join(f"worker-{n + 1}={LAYERS // 3}" for n in range(3))


def _once(
    bench: Rig,
    number: int,
    chance: random.Random,
    ways: tuple[str, ...],
    expected: dict[tuple[int, int], list[int]],
    survive: int,
    say: Any,
) -> Outcome:
    way, cut = ways[number % len(ways)], Cut()
    try:
        told = asyncio.run(generation(bench, number, way, chance, cut))
    finally:
        cut.heal()
    key = (number % len(PROMPTS), number % 7 if number % 2 else -1)
    same = told.tokens == expected[key] and bool(told.finish)
    outcome = Outcome(way, same, told.pause_s, _recovery(bench))
    say(f"{number + 1:4d}  {way:4s}  {'same' if same else 'OTHER'}  pause {told.pause_s:6.3f} s  {outcome.recovery}")
    _whole(bench, survive)
    return outcome


def _recovery(bench: Rig) -> str:
    """The front's own last sentence about it."""
    said = [d["text"] for d in bench.note()["decisions"] if "go on after" in d["text"]]
    return said[-1].rpartition("; ")[2] if said else ""


def _whole(bench: Rig, survive: int) -> None:
    """Every machine is back, and (with reserves) every layer is held twice."""
    bench.wait(lambda note: sum(m["up"] for m in note["machines"]) == STAGES, "the return of a machine")
    if survive:
        bench.wait_reserves()
    else:
        bench.wait_serving()


def summary(outcomes: list[Outcome]) -> dict[str, Any]:
    def figures(some: list[Outcome]) -> dict[str, Any]:
        pauses = sorted(o.pause_s for o in some)
        return {
            "generations": len(some),
            "identical": sum(o.identical for o in some),
            "pause_p50_s": round(statistics.median(pauses), 3),
            "pause_p95_s": round(pauses[min(len(pauses) - 1, int(0.95 * len(pauses)))], 3),
        }

    ways = sorted({o.way for o in outcomes})
    return {
        "bench": "failover",
        **figures(outcomes),
        "ways": {w: figures([o for o in outcomes if o.way == w]) for w in ways},
    }


def in_namespace() -> None:
    """Start again in a network namespace of our own, where dropping packets hurts nobody else."""
    if os.environ.get(INSIDE) or os.name != "posix" or os.geteuid() or not all(map(shutil.which, ("unshare", "nft"))):
        return
    os.environ[INSIDE] = "1"
    line = ["unshare", "-n", "sh", "-c", 'ip link set lo up && exec "$0" "$@"', sys.executable, *sys.argv]
    os.execvp("unshare", line)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--generations", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--survive", type=int, choices=(0, 1), default=1)
    parser.add_argument("--ways", default=",".join(WAYS), help="of kill, stop, cut")
    parser.add_argument("--json", default="-", metavar="FILE", help="- is standard output")
    given = parser.parse_args()
    ways = tuple(given.ways.split(","))
    if "cut" in ways:
        in_namespace()
        if not os.environ.get(INSIDE):
            print("cutting off needs root and nft: only kill and stop", file=sys.stderr)
            ways = tuple(way for way in ways if way != "cut")
    found = summary(run(given.generations, given.seed, given.survive, ways, lambda line: print(line, flush=True)))
    found["survive"] = given.survive
    line = json.dumps(found)
    if given.json == "-":
        print(line)
    else:
        Path(given.json).write_text(line + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
