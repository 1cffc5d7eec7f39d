"""A machine joins a pipeline while answers go on, takes layers with their KV, and leaves again: what do streams notice?

    python bench/moving.py [--rounds 4]

Three processes that are slowed to a quarter serve a small Llama in fp32; a fourth, as fast as this machine is, joins
the pool by token. Four sampled answers at once are asked again and again; each must be what it was before. One line of
JSON: tokens a second before, with the fourth and after it was drained, answers that differed, positions that were
computed again, bytes of KV that went from machine to machine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.pipeline_rig import SMALL, Rig, checkpoint, rig

from medley.engines.sampling import Sampling
from medley.models.memory import available_nbytes
from medley.policies.pipeline.describe import Wanted
from medley.serving.fleet import ServeOptions

LAYERS, SLOW = 12, 4.0
LAYERS_THAT_FIT = 5.5  # in a third of this machine's memory
PROMPTS = [[3 + (5 * p + 7 * i) % 250 for i in range(20 + p)] for p in range(4)]
TOKENS = 60
KV_NBYTES = 2 * 4 * 16 * 4  # of a token in a layer: keys and values, four heads of 16, fp32
GIVE_UP_S = 240.0


class Bench:
    """Rounds of the same four answers."""

    def __init__(self, pipe: Rig) -> None:
        self.pipe = pipe
        self.differed = 0
        self.expected: list[list[int]] = []

    async def _together(self) -> list[list[int]]:
        asked = [self.pipe.ask(prompt, Sampling(TOKENS, 0.5, seed=p, logprobs=0)) for p, prompt in enumerate(PROMPTS)]
        return [one.tokens for one in await asyncio.gather(*asked)]

    def round(self) -> float:
        """Tokens a second of one round; counts answers that are not what they were."""
        began = time.monotonic()
        told = asyncio.run(self._together())
        self.expected = self.expected or told
        self.differed += sum(a != b for a, b in zip(told, self.expected, strict=True))
        return sum(map(len, told)) / (time.monotonic() - began)

    def rounds(self, count: int) -> float:
        return max(self.round() for _ in range(count))

    def until(self, condition: Callable[[dict[str, Any]], bool], what: str) -> None:
        deadline = time.monotonic() + GIVE_UP_S
        while not condition(self.pipe.note()):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{what} did not happen: {json.dumps(self.pipe.note())[:2000]}")
            self.round()


def promised() -> int:
    """Tokens of KV for which no third of this machine has room for half of the layers."""
    third = available_nbytes() / 3 * 0.8 - Wanted().process_nbytes
    return int(third / LAYERS_THAT_FIT / KV_NBYTES)


def newcomer(note: dict[str, Any]) -> str:
    """The coordinator adds to a name what makes it the only one."""
    return next((m["name"] for m in note["machines"] if m["name"].startswith("fast")), "")


def its_layers(note: dict[str, Any]) -> int:
    name = newcomer(note)
    return sum(h["end"] - h["first"] for p in note["pipelines"] for h in p["hops"] if h["machine"] == name)


@contextmanager
def joined(pipe: Rig, directory: Path) -> Iterator[None]:
    """A further machine that is as fast as this one really is."""
    token = pipe.pool.operator.ask("token")["token"]
    words = ["join", "--token", token, "--name", "fast", "--dir", str(directory)]
    line = [sys.executable, "-m", "medley", *words]
    process = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        process.wait(30)


def run(rounds: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="medley-moving-", ignore_cleanup_errors=True) as folder:
        model = checkpoint(Path(folder) / "model", {**SMALL, "num_hidden_layers": LAYERS})
        options = ServeOptions("fp32", "throughput", expected=3, local=True, kv_tokens=promised(), draft=False)
        slow = (SLOW, SLOW, SLOW)
        with rig(model, Path(folder) / "pool", 3, options, encrypt=True, compute_factors=slow) as pipe:
            bench = Bench(pipe)
            before = bench.rounds(rounds)
            with joined(pipe, Path(folder) / "fast"):
                bench.until(lambda note: its_layers(note) > 0, "the move to the new machine")
                layers, with_it = its_layers(pipe.note()), bench.rounds(rounds)
                pipe.engine.drain(newcomer(pipe.note()))
                bench.until(lambda note: not its_layers(note), "the end of the drain")
                after = bench.rounds(rounds)
                note = pipe.note()
    return {
        "bench": "moving",
        "before_tokens_per_s": round(before, 1),
        "with_fourth_tokens_per_s": round(with_it, 1),
        "after_tokens_per_s": round(after, 1),
        "layers_of_fourth": layers,
        "answers_that_differed": bench.differed,
        "positions_computed_again": sum(p["recomputed"] for p in note["pipelines"]),
        "kv_nbytes_moved": sum(m["shadow_nbytes"] for m in note["machines"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=4)
    print(json.dumps(run(parser.parse_args().rounds)), flush=True)


if __name__ == "__main__":
    main()
