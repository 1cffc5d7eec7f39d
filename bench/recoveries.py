"""What bringing back a lost stage's KV cache costs, way by way: should the layers before it keep what they sent?

    python bench/recoveries.py [--layers 22] [--positions 128,512,1792] [--mbit 100] [--rounds 3]

The middle of three stages of TinyLlama-1.1B's shape (random weights, bf16) is lost after so many positions of one
request, and its reserve holds the weights. The ways, as seconds of computing on this machine and bytes for each token:

    whole     every stage computes every position again; nothing is sent while all is well
    boundary  the stage before keeps (at a neighbour) what it sent: only the lost layers compute again
    copy      a neighbour has the KV already: it is taken in, nothing is computed

`boundary_pause_s` and `copy_pause_s`: with the bytes that must be fetched first over a link of `--mbit`, of which the
copy needs none when the neighbour itself takes the layers over, as Medley plans it. One line of JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.decode import tinyllama

from medley.engines.stage import StageEngine
from medley.models.random_weights import RandomTensors
from medley.models.slices import Parts
from medley.policies.pipeline.batching import CHUNK_TOKENS
from medley.protocol.stages.words import Row

KV_NBYTES = 8 << 30


def seconds(call: Callable[[], object], rounds: int) -> float:
    """Of the best round: whatever else runs can only slow one down."""
    seen = []
    for _ in range(rounds):
        began = time.perf_counter()
        call()
        seen.append(time.perf_counter() - began)
    return min(seen)


class Middle:
    """An engine with the layers of the lost stage. The other stages' layers cost what these cost."""

    def __init__(self, layers: int) -> None:
        config = tinyllama(layers)
        self.first, self.end = layers // 3, 2 * layers // 3
        self.width = int(config.hidden_size)
        self.engine = StageEngine(config, torch.bfloat16, KV_NBYTES)
        self.engine.load(RandomTensors(Parts(config, torch.bfloat16).shapes(), 1), self.first, self.end)
        self.count = self.end - self.first

    def compute(self, positions: int) -> None:
        """Everything again, in the chunks in which a front sends it."""
        self.engine.free(1)
        self.engine.open(1)
        for start in range(0, positions, CHUNK_TOKENS):
            count = min(CHUNK_TOKENS, positions - start)
            hidden = torch.zeros(count, self.width, dtype=torch.bfloat16)
            self.engine.forward([Row(1, start, count, 0)], hidden, self.first, self.end)

    def take_in(self, kv: torch.Tensor) -> None:
        self.engine.free(1)
        self.engine.open(1)
        self.engine.import_kv(1, range(self.first, self.end), 0, kv)


def measure(given: argparse.Namespace) -> dict[str, Any]:
    middle = Middle(given.layers)
    found = {}
    for positions in map(int, given.positions.split(",")):
        again = seconds(lambda positions=positions: middle.compute(positions), given.rounds)  # type: ignore[misc]
        kv = middle.engine.export_kv(1, range(middle.first, middle.end)).clone()
        taken = seconds(lambda kv=kv: middle.take_in(kv), given.rounds)  # type: ignore[misc]
        logged = positions * middle.width * 2
        found[str(positions)] = {
            "whole_s": round(again * given.layers / middle.count, 3),
            "boundary_s": round(again, 3),
            "copy_s": round(taken, 4),
            "boundary_pause_s": round(again + logged * 8 / given.mbit / 1e6, 3),
            "copy_pause_s": round(taken, 4),
        }
    token = middle.engine.token_nbytes * middle.count
    nbytes = {"whole": 0, "boundary": middle.width * 2, "copy": token}
    return {"lost_layers": middle.count, "nbytes_a_token_while_all_is_well": nbytes, "positions": found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=22)
    parser.add_argument("--positions", default="128,512,1792")
    parser.add_argument("--mbit", type=float, default=100.0, help="of the link to whoever keeps the log")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(max(1, (os.cpu_count() or 2) // 2))
    with torch.inference_mode():
        print(json.dumps({"bench": "recoveries", "layers": given.layers, **measure(given)}))


if __name__ == "__main__":
    main()
