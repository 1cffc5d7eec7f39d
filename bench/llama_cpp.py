"""Decoding one stream beside llama.cpp, weight bytes a second, in one run: a random model of TinyLlama-1.1B's shape.

Needs a directory of llama.cpp's sources with `llama-bench` built in it (the source distribution of llama-cpp-python has
them under vendor/llama.cpp):

    cmake -B build -DGGML_NATIVE=ON -DLLAMA_OPENSSL=OFF -DCMAKE_BUILD_TYPE=Release
    cmake --build build --target llama-bench

llama.cpp's tuning is on the line: its threads, and its own repacking of weights (on by default). Q8_0 has 8.5 bits a
weight and Q4_0 4.5; `of_llama_cpp` is our weight bytes a second over theirs. Contenders take turns, the best counts.

    python bench/llama_cpp.py --llama DIR [--layers 22] [--tokens 16] [--rounds 3] [--threads N] [--out FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

try:
    from decode import Stream, tinyllama
except ImportError:
    from bench.decode import Stream, tinyllama

PAIRS = {"int8": "Q8_0", "int4": "Q4_0", "bf16": "BF16"}
OURS = {"int8": "int8", "int4": "int4", "bf16": "none"}


def write(llama: Path, file: Path, config: Any, kind: str) -> int:
    """A GGUF file of random weights; the bytes that one token reads of it."""
    sys.path.insert(0, str(llama / "gguf-py"))
    import gguf  # type: ignore[import-not-found,unused-ignore]

    writer = gguf.GGUFWriter(str(file), "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("no_vocab")
    read = 0
    for name, shape in _shapes(config).items():
        type_ = gguf.GGMLQuantizationType.F32 if len(shape) == 1 else gguf.GGMLQuantizationType[kind]
        some = np.random.default_rng(len(name)).normal(0, 0.02, (min(shape[0], 256), *shape[1:])).astype(np.float32)
        data = gguf.quants.quantize(some, type_)
        whole = np.tile(data, (-(-shape[0] // len(some)), *[1] * (data.ndim - 1)))[: shape[0]]
        writer.add_tensor(name, np.ascontiguousarray(whole), raw_dtype=type_)
        read += 0 if name == "token_embd.weight" else whole.nbytes
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return read


def _shapes(config: Any) -> dict[str, tuple[int, ...]]:
    width, inner, entries = config.hidden_size, config.intermediate_size, config.vocab_size
    groups = width // config.num_attention_heads * config.num_key_value_heads
    layer = {
        "attn_norm": (width,), "ffn_norm": (width,), "attn_q": (width, width), "attn_k": (groups, width),
        "attn_v": (groups, width), "attn_output": (width, width), "ffn_gate": (inner, width),
        "ffn_up": (inner, width), "ffn_down": (width, inner),
    }  # fmt: skip
    layers = {f"blk.{i}.{n}.weight": shape for i in range(config.num_hidden_layers) for n, shape in layer.items()}
    ends = {"token_embd.weight": (entries, width), "output_norm.weight": (width,), "output.weight": (entries, width)}
    return ends | layers


def llama_token_s(llama: Path, file: Path, options: argparse.Namespace) -> float:
    command = [str(llama / "build" / "bin" / "llama-bench"), "-m", str(file), "-p", "0", "-n", str(options.tokens)]
    command += ["-t", str(options.threads), "-r", "1", "-d", "32", "-o", "json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600)
    return 1 / float(json.loads(done.stdout)[0]["avg_ts"])


def measure(options: argparse.Namespace, directory: Path) -> dict[str, Any]:
    llama, config = Path(options.llama), tinyllama(options.layers)
    figures: dict[str, Any] = {}
    for ours, theirs in PAIRS.items():
        file = directory / f"{theirs}.gguf"
        read = write(llama, file, config, theirs)
        stream = Stream(config, OURS[ours])
        best = {"ours": float("inf"), "theirs": float("inf")}
        turns: dict[str, Callable[[], float]] = {
            "ours": lambda s=stream: s.token_s(1, options.tokens),  # type: ignore[misc]
            "theirs": lambda f=file: llama_token_s(llama, f, options),  # type: ignore[misc]
        }
        for _ in range(options.rounds):
            for name, turn in turns.items():
                best[name] = min(best[name], turn())
        file.unlink()
        mine, other = stream.nbytes / best["ours"], read / best["theirs"]
        figures[ours] = {
            "tokens_per_s": round(1 / best["ours"], 2),
            "gb_per_s": round(mine / 1e9, 2),
            f"llama_cpp_{theirs}_tokens_per_s": round(1 / best["theirs"], 2),
            f"llama_cpp_{theirs}_gb_per_s": round(other / 1e9, 2),
            "of_llama_cpp": round(mine / other, 3),
        }
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description="Single-stream decoding beside llama.cpp, in weight bytes a second.")
    parser.add_argument("--llama", required=True, help="llama.cpp's sources, with build/bin/llama-bench")
    parser.add_argument("--layers", type=int, default=22, help="of TinyLlama's shape (default 22, all)")
    parser.add_argument("--tokens", type=int, default=16, help="of one turn (default 16)")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each contender (default 3)")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of both (default: cores)")
    parser.add_argument("--out", help="also write the line to this file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as directory:
        figures = measure(options, Path(directory))
    line = json.dumps({"figure": "llama_cpp", "layers": options.layers, "threads": options.threads, **figures})
    print(line)
    if options.out:
        Path(options.out).write_text(line + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
