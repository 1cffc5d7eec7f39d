"""What packing gains: tokens of real text per second, many examples in one sequence against one padded sequence each.

The same engine, model and leases in one process; the two ways take turns, medians count. Padded batches hold --rows
examples and are as wide as the longest of them. Prints one line of JSON:

    python bench/packing.py [--data MedQuAD] [--context 1024] [--rows 32] [--rounds 5] [--threads 2] [--out FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from medley.data.prepare import prepare
from medley.engines.causal_lm import open_causal_lm, prepare_tokenizer
from medley.engines.train import TrainEngine, Work
from medley.models.dtype import choose_dtype
from medley.protocol.spec import Data, JobSpec, Model, Train


def job(options: argparse.Namespace) -> JobSpec:
    source = Data(source="medquad", path=options.data) if options.data else Data(source="builtin")
    return JobSpec(
        model=Model(base="llama-tiny", vocab_size=8192, context_tokens=options.context),
        data=replace(source, heldout_fraction=0.02, max_samples=options.max_samples),
        train=Train(batch_samples=options.batch, threads=options.threads),
    )


def engine(spec: JobSpec, data: Path, tokenizer: Path, packing: bool, rows: int) -> TrainEngine:
    dtype = choose_dtype(spec.model.dtype)
    task = open_causal_lm(replace(spec, data=replace(spec.data, packing=packing)), data, tokenizer, dtype)
    train = spec.train if packing else replace(spec.train, micro_batch=rows)
    return TrainEngine(task, train, spec.placement, dtype, time.monotonic_ns)


def rate(engine: TrainEngine, work: Work) -> float:
    """Real tokens per second of one lease whose text is tokenised already."""
    engine.prefetch(work)
    result = engine.run(work, 1e-4)
    return result.tokens / result.seconds


def measure(options: argparse.Namespace) -> dict[str, Any]:
    spec = job(options)
    rates: dict[str, list[float]] = {"packed": [], "padded": []}
    with tempfile.TemporaryDirectory() as folder:
        data, tokenizer = Path(folder) / "data", Path(folder) / "tokenizer"
        prepare_tokenizer(spec, prepare(spec.data, spec.train.seed, data), tokenizer)
        engines = {name: engine(spec, data, tokenizer, name == "packed", options.rows) for name in rates}
        for round_ in range(options.rounds + 1):
            work = Work(((0, round_ * options.batch, (round_ + 1) * options.batch),))
            for name, made in engines.items():
                made.prefetch(work)
                seen = rate(made, work)
                if round_:
                    rates[name].append(seen)
        for made in engines.values():
            made.close()
    medians = {name: statistics.median(seen) for name, seen in rates.items()}
    gains = [a / b for a, b in zip(rates["packed"], rates["padded"], strict=True)]
    return {
        "ratio": round(statistics.median(gains), 3),
        "ratios": [round(gain, 3) for gain in gains],
        "tokens_per_s": {name: round(seen) for name, seen in medians.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Packed against padded batches.")
    parser.add_argument("--data", default="", help="a clone of MedQuAD (default: the built-in corpus)")
    parser.add_argument("--context", type=int, default=1024, help="tokens of a sequence (default 1024)")
    parser.add_argument("--batch", type=int, default=64, help="examples of a lease (default 64)")
    parser.add_argument("--rows", type=int, default=32, help="examples of a padded batch (default 32)")
    parser.add_argument("--max-samples", type=int, default=2000, help="examples read (default 2000)")
    parser.add_argument("--rounds", type=int, default=5, help="leases whose median counts, after one to warm up")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="torch threads (default: cores)")
    parser.add_argument("--out", help="also write the line to this file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    figure = {
        "figure": "packing",
        "data": "medquad" if options.data else "builtin",
        "context_tokens": options.context,
        "padded_rows": options.rows,
        **measure(options),
    }
    line = json.dumps(figure)
    print(line)
    if options.out:
        Path(options.out).write_text(line + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
