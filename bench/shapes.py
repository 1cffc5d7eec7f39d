"""Random checkpoints of real shapes, in safetensors files and an index, as large models are stored; no network.

    python bench/shapes.py tinyllama-1.1b DIRECTORY [--layers N] [--shard-mib 500]
    python bench/shapes.py opt-1.3b DIRECTORY

`--memory FIRST:END` then loads these layers from it in a process of its own, serves eight requests of 256 tokens, and
tells that process's peak beside what `medley plan` counts for it: one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, OPTConfig

from medley.models.random_weights import RandomTensors
from medley.models.slices import Parts, config_of_directory, sizes
from medley.models.weightfiles import INDEX, WeightFiles, directory_files
from medley.policies.pipeline.describe import ModelShape, Wanted
from medley.policies.pipeline.ground import stage_nbytes

STREAMS = 8
TOKENS = 256


def config_of(name: str, layers: int | None) -> Any:
    if name == "tinyllama-1.1b":
        return LlamaConfig(
            vocab_size=32_000, hidden_size=2048, intermediate_size=5632, num_hidden_layers=layers or 22,
            num_attention_heads=32, num_key_value_heads=4, max_position_embeddings=2048, dtype="bfloat16",
        )  # fmt: skip
    return OPTConfig(
        vocab_size=50_272, hidden_size=2048, ffn_dim=8192, num_hidden_layers=layers or 24, num_attention_heads=32,
        max_position_embeddings=2048, word_embed_proj_dim=2048, dtype="bfloat16",
    )  # fmt: skip


def write(config: Any, directory: Path, shard_nbytes: int) -> None:
    """Every tensor is a function of its name, so two machines that write a checkpoint have the same."""
    directory.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(str(directory))
    holders = {}
    for number, tensors in enumerate(_shards(config, shard_nbytes), start=1):
        file = f"model-{number:05d}.safetensors"
        save_file(tensors, str(directory / file), {"format": "pt"})
        holders.update(dict.fromkeys(tensors, file))
    index = {"metadata": {}, "weight_map": holders}
    (directory / INDEX).write_text(json.dumps(index), encoding="utf-8")


def _shards(config: Any, shard_nbytes: int) -> Iterator[dict[str, torch.Tensor]]:
    source = RandomTensors(Parts(config, torch.bfloat16).shapes(), seed=1)
    shard: dict[str, torch.Tensor] = {}
    for name in source.names:
        shard[name] = source.read(source.find(name), torch.bfloat16)
        if sum(tensor.nbytes for tensor in shard.values()) >= shard_nbytes:
            yield shard
            shard = {}
    if shard:
        yield shard


def planned_nbytes(config: Any, first: int, end: int) -> int:
    told = sizes(config, torch.bfloat16)
    shape = ModelShape(
        "", told.layers, told.layer_nbytes, told.embedding_nbytes, told.head_nbytes, told.kv_nbytes, told.wire_nbytes,
        told.tied,
    )  # fmt: skip
    wanted = Wanted(kv_tokens=STREAMS * TOKENS)
    return stage_nbytes(shape, wanted, end - first, first == 0, end == told.layers)


def serve(directory: Path, first: int, end: int) -> dict[str, int]:
    """Loads and computes; this process's peak, and what it was before the first weight."""
    from medley.engines.stage import StageEngine
    from medley.protocol.stages.words import Row

    config = config_of_directory(directory)
    engine = StageEngine(config, torch.bfloat16, 8 << 30)
    before = _kept("VmRSS")
    engine.load(WeightFiles.open(directory_files(directory)), first, end)
    loaded, peak = _kept("VmRSS"), _kept("VmHWM")
    for request in range(1, STREAMS + 1):
        engine.open(request)
        given = [7] * TOKENS if first == 0 else torch.zeros(TOKENS, config.hidden_size, dtype=torch.bfloat16)
        engine.forward([Row(request, 0, TOKENS, 1)], given, first, end)
    return {"before": before, "loaded": loaded, "peak_loading": peak, "peak": _kept("VmHWM")}


def _kept(name: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def memory(directory: Path, span: str) -> dict[str, Any]:
    first, end = map(int, span.split(":"))
    command = [sys.executable, __file__, "serve", str(directory), "--memory", span]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600)
    seen = json.loads(done.stdout)
    planned = planned_nbytes(config_of_directory(directory), first, end)
    mib = {f"{name}_mib": nbytes >> 20 for name, nbytes in (seen | {"planned": planned}).items()}
    return {"figure": "memory", "layers": span, **mib, "of_plan": round(seen["peak"] / planned, 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description="Random checkpoints of real shapes.")
    parser.add_argument("shape", choices=["tinyllama-1.1b", "opt-1.3b", "serve"])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--layers", type=int, help="fewer than the real shape has")
    parser.add_argument("--shard-mib", type=int, default=500, help="of one file (default 500)")
    parser.add_argument(
        "--memory", metavar="FIRST:END", action="append", default=[], help="load these layers, and tell"
    )
    options = parser.parse_args()
    if options.shape == "serve":
        print(json.dumps(serve(options.directory, *map(int, options.memory[0].split(":")))))
        return
    if not (options.directory / INDEX).exists():
        write(config_of(options.shape, options.layers), options.directory, options.shard_mib << 20)
    for span in options.memory:
        print(json.dumps({"shape": options.shape, **memory(options.directory, span)}))


if __name__ == "__main__":
    main()
