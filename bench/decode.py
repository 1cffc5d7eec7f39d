"""Decoding one stream: weight bytes a second of the stage engine against what this machine can read, in one run.

A random model of TinyLlama-1.1B's shape (nothing is downloaded) in bf16, int8 and int4, and Hugging Face `generate` in
bf16 beside it. What a memory gives changes within seconds where others use it too, so each turn of a contender stands
between two turns of reading (sums over one large tensor), together as long as its own: `of_read` is its bytes a second
over theirs, the median of all rounds. `tokens_per_s` is that of the best turn, and `streams_8` eight streams'
tokens/s over one's, best turns both. One line of JSON:

    python bench/decode.py [--layers 22] [--tokens 16] [--rounds 5] [--threads N] [--without hf] [--out FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from medley.engines.stage import StageEngine
from medley.models.quantise import linear_nbytes, quantiser
from medley.models.random_weights import RandomTensors
from medley.models.slices import Parts, sizes
from medley.protocol.stages.words import Row

PROMPT = 32
READ_NBYTES = 1 << 29
FORMATS = {"bf16": "none", "int8": "int8", "int4": "int4"}


def tinyllama(layers: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=32_000,
        hidden_size=2048,
        intermediate_size=5632,
        num_hidden_layers=layers,
        num_attention_heads=32,
        num_key_value_heads=4,
        max_position_embeddings=2048,
    )


def spent(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


class Stream:
    """One format's engine with eight requests that have a prompt behind them."""

    def __init__(self, config: LlamaConfig, kind: str) -> None:
        weights = RandomTensors(Parts(config, torch.bfloat16).shapes(), 1)
        self.engine = StageEngine(config, torch.bfloat16, 8 << 30, quantiser(kind))
        self.layers = config.num_hidden_layers
        self.engine.load(weights, 0, self.layers)
        told = sizes(config, torch.bfloat16, partial(linear_nbytes, kind=kind))
        self.nbytes = told.layers * told.layer_nbytes + told.head_nbytes
        for number in range(8):
            self.engine.open(number)
            self.engine.forward([Row(number, 0, PROMPT, 0)], [7] * PROMPT, 0, self.layers)

    def token_s(self, streams: int, tokens: int) -> float:
        """Seconds of one pass that gives each stream a token; positions are taken anew each time."""

        def decode() -> None:
            for at in range(PROMPT, PROMPT + tokens):
                rows = [Row(number, at, 1, 1) for number in range(streams)]
                self.engine.forward(rows, [9] * streams, 0, self.layers)

        return spent(decode) / tokens


class HuggingFace:
    """`generate`, greedy; the prompt's cost falls out of the difference of two lengths, the best of each so far."""

    def __init__(self, config: LlamaConfig) -> None:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        self.model = model.to_empty(device="cpu").eval()
        some = torch.randn(1_000_003).mul_(0.02).bfloat16()
        for p in self.model.parameters():
            p.data = some.repeat(-(-p.numel() // some.numel()))[: p.numel()].reshape(p.shape).clone()
        self.few = self.many = float("inf")
        rotary = self.model.model.rotary_emb
        self.model.model.rotary_emb = type(rotary)(config=self.model.config)

    def token_s(self, tokens: int) -> float:
        ids = torch.full((1, PROMPT), 7)

        def generate(count: int) -> object:
            return self.model.generate(ids, max_new_tokens=count, min_new_tokens=count, do_sample=False, pad_token_id=0)

        self.few = min(self.few, spent(lambda: generate(2)))
        self.many = min(self.many, spent(lambda: generate(2 + tokens)))
        return (self.many - self.few) / tokens


@dataclass
class Turns:
    """Of one contender: seconds of a token, and bytes a second that were read beside each."""

    token_s: list[float] = field(default_factory=list)
    read: list[float] = field(default_factory=list)
    took_s: float = 0.0  # the last turn


def bandwidth(held: torch.Tensor, seconds: float) -> float:
    """Bytes a second, over so many seconds."""
    times, took = 0, 0.0
    while took < seconds or not times:
        took += spent(held.sum)
        times += 1
    return times * held.nbytes / took


def take_turn(turns: Turns, once: Callable[[], float], held: torch.Tensor) -> None:
    """Reading before it is as long as the turn was the last time."""
    before = bandwidth(held, turns.took_s / 2)
    turns.took_s = spent(lambda: turns.token_s.append(once()))
    turns.read.append((before + bandwidth(held, turns.took_s / 2)) / 2)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    config = tinyllama(options.layers)
    held = torch.ones(READ_NBYTES // 4)
    streams = {name: Stream(config, kind) for name, kind in FORMATS.items()}
    contenders: dict[str, Callable[[], float]] = {
        **{name: lambda s=s: s.token_s(1, options.tokens) for name, s in streams.items()},
        "bf16_8": lambda: streams["bf16"].token_s(8, max(2, options.tokens // 4)),
    }
    if options.without != "hf":
        huggingface = HuggingFace(config)
        contenders["huggingface_bf16"] = lambda: huggingface.token_s(options.tokens)
    turns = {name: Turns() for name in contenders}
    for _ in range(options.rounds):
        for name, once in contenders.items():
            take_turn(turns[name], once, held)
    eight = min(turns.pop("bf16_8").token_s)
    reads = [read for one in turns.values() for read in one.read]
    figures: dict[str, Any] = {"read_gb_per_s": round(median(reads) / 1e9, 2)}
    figures["streams_8"] = round(8 * min(turns["bf16"].token_s) / eight, 2)
    return figures | {name: summary(one, streams[name.removeprefix("huggingface_")]) for name, one in turns.items()}


def summary(turns: Turns, stream: Stream) -> dict[str, float]:
    of_read = [stream.nbytes / token_s / read for token_s, read in zip(turns.token_s, turns.read, strict=True)]
    return {
        "tokens_per_s": round(1 / min(turns.token_s), 2),
        "weight_gb": round(stream.nbytes / 1e9, 3),
        "of_read": round(median(of_read), 3),
        "of_read_worst": round(min(of_read), 3),
        "of_read_best": round(max(of_read), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Single-stream decoding against the machine's read bandwidth.")
    parser.add_argument("--layers", type=int, default=22, help="of TinyLlama's shape (default 22, all)")
    parser.add_argument("--tokens", type=int, default=16, help="of one turn (default 16)")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each contender (default 5)")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="torch threads (default: cores)")
    parser.add_argument("--without", choices=["hf"], help="leave Hugging Face out")
    parser.add_argument("--out", help="also write the line to this file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    figure = {"figure": "decode", "layers": options.layers, "threads": options.threads, **measure(options)}
    line = json.dumps(figure)
    print(line)
    if options.out:
        Path(options.out).write_text(line + "\n", encoding="utf-8")


if __name__ == "__main__":
    with torch.inference_mode():
        main()
