"""A model over two or three stages of this machine against what it could do at best. One line of JSON for each figure.

    python bench/pipeline.py [--what FIGURE,...] [--layers 22] [--tokens 32] [--rounds 3]

Random weights of TinyLlama-1.1B's shape in bf16 (fewer layers where a figure does not need all of them); nothing is
downloaded. Two processes on one memory bus: a stage that decodes alone gets what one core can read, two together what
the bus gives, so two are never twice as fast as one; `ideal` beside a figure is what these cores could do at best.

    split    one stream over two stages / over one, the same threads for each
    filled   tokens a second of 16 streams over two stages / a batch's rows over the slower stage's time under that load
    prefill  a prompt of 2,048 tokens: chunks one after the other through both stages / following each other
    draft    one stream, the way to the first stage 100 ms long, text that repeats itself: with drafts / without; and
             the same for text that does not
    guess    the same way, text that does not repeat itself, a draft model of one layer: with it / without; and the same
             for one that never agrees
    skew     machines 4:1 in speed, many streams: the planner's layout / layers in proportion to memory
    kill     SIGKILL of the middle of three stages at token 64: the pause, with reserves and without
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.pipeline_rig import TEXTS, Rig, rig
from bench.shapes import config_of, write
from safetensors.torch import load_file, save_file

from medley.engines.sampling import Sampling
from medley.models.tokenizer import train_tokenizer
from medley.protocol.stages.events import Post
from medley.protocol.stages.words import Pass
from medley.serving.fleet import ServeOptions, even_pins

PROMPT = [11 + (13 * i) % 280 for i in range(32)]
DELAY_S = 0.1
WORDS = 40


def greedy(tokens: int) -> Sampling:
    return Sampling(tokens, logprobs=0)


class Bench:
    """Checkpoints and pools below one directory."""

    def __init__(self, folder: Path, layers: int, tokens: int, rounds: int) -> None:
        self.folder, self.layers, self.tokens, self.rounds = folder, layers, tokens, rounds
        self._pools = 0

    def model(self, layers: int, repeating: bool = False, shallow: bool = False) -> Path:
        directory = self.folder / f"llama-{layers}{'-repeating' * repeating}{'-shallow' * shallow}"
        if not directory.exists():
            write(config_of("tinyllama-1.1b", layers), directory, 500 << 20)
            train_tokenizer(TEXTS * 4, 320, directory)
            if repeating:
                forget_context(directory)
            if shallow:
                add_nothing(directory)
        return directory

    @contextmanager
    def over(self, layers: int, stages: int, pins: str = "", workers: int = 0, **more: Any) -> Iterator[Rig]:
        pool = {"compute_factors": more.pop("compute_factors", ())}
        names = [f"worker-{n + 1}" for n in range(stages)]
        model = self.model(layers, more.pop("repeating", False), more.pop("shallow", False))
        given = {"draft": False, "kv_tokens": 8 * 2304, "expected": workers or stages, "local": True, **more}
        pinned = pins or even_pins(names, layers)
        options = ServeOptions(**given, pins="" if pins == "planned" else pinned)
        self._pools += 1
        with rig(model, self.folder / f"pool-{self._pools}", workers or stages, options, **pool) as made:
            asyncio.run(made.ask(PROMPT, greedy(4)))
            yield made

    def best(self, call: Callable[[], float]) -> float:
        """Whatever else runs can only slow a turn down."""
        return max(call() for _ in range(self.rounds))


def rate(bench: Rig, tokens: int) -> float:
    """Tokens a second of one stream, the first one left out."""
    return per_second(asyncio.run(bench.alone(PROMPT, greedy(tokens))))


def per_second(at_s: list[float]) -> float:
    return (len(at_s) - 1) / (at_s[-1] - at_s[0])


async def _many(bench: Rig, streams: int, tokens: int) -> float:
    began = time.monotonic()
    asked = [bench.ask([*PROMPT, 5 + s], greedy(tokens)) for s in range(streams)]
    told = await asyncio.gather(*asked)
    return sum(len(one.tokens) for one in told) / (time.monotonic() - began)


# -- figures ----------------------------------------------------------------------------------------------------------


def split(bench: Bench) -> dict[str, Any]:
    """Both hold the same threads, so that at any moment the same cores compute."""
    threads = os.cpu_count() or 1
    with bench.over(bench.layers, 1, threads=threads) as one, bench.over(bench.layers, 2, threads=threads) as two:
        pairs = [(rate(one, bench.tokens), rate(two, bench.tokens)) for _ in range(bench.rounds)]
    whole, parts = max(a for a, _ in pairs), max(b for _, b in pairs)
    return {"whole_tokens_per_s": whole, "two_stages_tokens_per_s": parts, "ratio": parts / whole, "ideal": 1.0}


def filled(bench: Bench) -> dict[str, Any]:
    """The bound: rows of a batch over the slower stage's own time, both measured while both are loaded."""
    streams, layers = 16, min(bench.layers, 12)

    def turn() -> tuple[float, float]:
        reached = asyncio.run(_many(two, streams, 2 * bench.tokens))
        pace = two.engine.host.front.pipelines[0].pace  # type: ignore[union-attr]
        return reached, pace.tokens / max(pace.spent_ns) * 1e9

    with bench.over(layers, 2, threads=1) as two:
        asyncio.run(_many(two, streams, 8))
        turns = [turn() for _ in range(bench.rounds)]
    reached, bound = max(turns, key=lambda t: t[0] / t[1])
    return {"tokens_per_s": reached, "bound_tokens_per_s": bound, "ratio": reached / bound, "ideal": 1.0}


def prefill(bench: Bench) -> dict[str, Any]:
    layers = min(bench.layers, 12)
    prompt = [11 + (17 * i) % 280 for i in range(2000)]

    def first_s(number: int) -> float:
        began = time.monotonic()
        return asyncio.run(two.alone([5 + number, *prompt], greedy(1)))[0] - began

    with bench.over(layers, 2, threads=1) as two:
        pipeline = two.engine.host.front.pipelines[0]  # type: ignore[union-attr]
        as_it_is = pipeline._groups
        overlapped, apart = [], []
        for turn in range(bench.rounds):
            overlapped.append(first_s(2 * turn))
            pipeline._groups = lambda: 1  # type: ignore[method-assign]  # the next chunk waits for the one before
            apart.append(first_s(2 * turn + 1))
            pipeline._groups = as_it_is  # type: ignore[method-assign]
    return {
        "sequential_s": min(apart),
        "overlapped_s": min(overlapped),
        "ratio": min(apart) / min(overlapped),
        "ideal": "2 less the first chunk's way: 1.78 for 8 chunks over 2 stages, where each has a core of its own",
    }


def draft(bench: Bench) -> dict[str, Any]:
    """Text that repeats itself is all draft; random text is none of it, and must not become slower."""
    layers, tokens = min(bench.layers, 4), 3 * bench.tokens

    def turn(pipe: Rig) -> float:
        return per_second(asyncio.run(pipe.alone(PROMPT, greedy(tokens))))

    found = {}
    for name, repeating in (("repeating", True), ("random", False)):
        with bench.over(layers, 2, repeating=repeating) as plain:
            _delay(plain)
            without = bench.best(lambda: turn(plain))
        with bench.over(layers, 2, repeating=repeating, draft=True) as drafting:
            _delay(drafting)
            with_drafts = bench.best(lambda: turn(drafting))
        found[name] = {"tokens_per_s": with_drafts, "without_drafts": without, "ratio": with_drafts / without}
    return {**found["repeating"], "random_text": _short(found["random"])}


def guess(bench: Bench) -> dict[str, Any]:
    """A large model whose later layers add nothing draws what its first layer alone does; another one does not."""
    layers, tokens = min(bench.layers, 4), 3 * bench.tokens
    small = bench.model(1)

    def turn(pipe: Rig) -> float:
        return per_second(asyncio.run(pipe.alone(PROMPT, greedy(tokens))))

    found = {}
    for name, shallow in (("agrees", True), ("never agrees", False)):
        rates = {}
        for draft_model in ("", str(small)):
            with bench.over(layers, 2, shallow=shallow, draft=True, draft_model=draft_model) as pipe:
                _delay(pipe)
                rates[draft_model] = bench.best(lambda pipe=pipe: turn(pipe))  # type: ignore[misc]
                if draft_model:
                    found[f"{name}: drafts"] = pipe.note()["pipelines"][0]["drafts"]
        found[name] = {"with": rates[str(small)], "without": rates[""], "ratio": rates[str(small)] / rates[""]}
    return {name: _short(figures) if "ratio" in figures else figures for name, figures in found.items()}


def add_nothing(directory: Path) -> None:
    """The layers after the first cost what they did and change nothing."""
    for path in directory.glob("*.safetensors"):
        tensors = load_file(path)
        for name, tensor in tensors.items():
            if name.endswith(("o_proj.weight", "down_proj.weight")) and ".layers.0." not in name:
                tensor.zero_()
        save_file(tensors, path, {"format": "pt"})


def forget_context(directory: Path) -> None:
    """Layers that cost what they did and add nothing, and few words: each decides the next, so they go in circles."""
    for path in directory.glob("*.safetensors"):
        tensors = load_file(path)
        for name, tensor in tensors.items():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                tensor.zero_()
            if name == "lm_head.weight":
                tensor[WORDS:] = 0
        save_file(tensors, path, {"format": "pt"})


def _delay(bench: Rig) -> None:
    """What goes to the first stage arrives so much later, in order."""
    host = bench.engine.host
    send = host._send

    def later(effect: Post) -> None:
        if isinstance(effect.word, Pass):
            assert host._loop is not None
            host._loop.call_later(DELAY_S, send, effect)
        else:
            send(effect)

    host._send = later  # type: ignore[method-assign]


def skew(bench: Bench) -> dict[str, Any]:
    layers = min(bench.layers, 10)
    factors = (1.0, 4.0)

    def turn(pipe: Rig) -> float:
        return asyncio.run(_many(pipe, 16, bench.tokens))

    room = {"kv_tokens": _promise(layers), "objective": "throughput", "compute_factors": factors, "threads": 1}
    with bench.over(layers, 2, **{**room, "kv_tokens": 8 * 2304}) as even:
        by_memory = bench.best(lambda: turn(even))
    with bench.over(layers, 2, "planned", **room) as planned:
        ours = bench.best(lambda: turn(planned))
        layout = planned.note()["reason"]
    return {"planned": ours, "in_proportion_to_memory": by_memory, "ratio": ours / by_memory, "layout": layout}


def _promise(layers: int) -> int:
    """Tokens of KV for which neither of two machines has room for all layers."""
    from medley.models.memory import available_nbytes
    from medley.policies.pipeline.describe import Wanted

    half = available_nbytes() / 2 * 0.8 - Wanted().process_nbytes
    return int(half / (layers - 1) / (2 * 4 * 64 * 2))


def kill(bench: Bench) -> dict[str, Any]:
    layers = min(bench.layers, 9)
    found: dict[str, Any] = {}
    for survive in (1, 0):
        pauses, detected = [], []
        pins = even_pins([f"worker-{n + 1}" for n in range(3)], layers)
        with bench.over(layers, 3, pins, workers=4, survive=survive) as three:
            for _ in range(bench.rounds):
                if survive:
                    three.wait_reserves()
                pause_s, detected_s = _killed(three)
                pauses.append(pause_s)
                detected.append(detected_s)
                three.wait(lambda note: sum(m["up"] for m in note["machines"]) == 4, "the machine's return")
        name = "with_reserves" if survive else "cold"
        found[f"pause_{name}_s"] = statistics.median(pauses)
        found[f"detected_{name}_s"] = statistics.median(detected)
    return found


def _killed(bench: Rig) -> tuple[float, float]:
    """(pause, until the front knew)."""
    at: dict[str, float] = {}

    async def struck() -> list[float]:
        bench.emitted.clear()  # of the answer before: this one has yet to begin
        asked = asyncio.ensure_future(bench.alone(PROMPT, greedy(96)))
        while len(bench.emitted) < 64:
            await asyncio.sleep(0.001)
        victim = bench.note()["pipelines"][0]["hops"][1]["machine"]
        at["killed"] = time.time()
        os.kill(bench.stages()[victim], signal.SIGKILL)
        return await asked

    times = asyncio.run(struck())
    knew = [d["wall_s"] for d in bench.engine.host.decisions if "is gone" in d["text"] and d["wall_s"] > at["killed"]]
    return max(b - a for a, b in itertools.pairwise(times)), min(knew) - at["killed"]


FIGURES: dict[str, Callable[[Bench], dict[str, Any]]] = {
    "split": split,
    "filled": filled,
    "prefill": prefill,
    "draft": draft,
    "guess": guess,
    "skew": skew,
    "kill": kill,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--what", default=",".join(FIGURES))
    parser.add_argument("--layers", type=int, default=22)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", metavar="FILE", help="append the lines to this file, too")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="medley-pipeline-") as folder:
        bench = Bench(Path(folder), given.layers, given.tokens, given.rounds)
        for name in given.what.split(","):
            line = json.dumps({"bench": "pipeline", "figure": name, **_short(FIGURES[name](bench))})
            print(line, flush=True)
            if given.out:
                with Path(given.out).open("a", encoding="utf-8") as file:
                    file.write(line + "\n")


def _short(figures: dict[str, Any]) -> dict[str, Any]:
    return {key: round(value, 3) if isinstance(value, float) else value for key, value in figures.items()}


if __name__ == "__main__":
    main()
