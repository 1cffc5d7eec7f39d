"""A model split over processes of this machine, asked through the official `openai` client: started, used, stopped.

    pip install openai
    python examples/serve_split.py [MODEL] [--stages 3]

Without MODEL it makes a tiny Llama with random weights, whose answers are nonsense; with one (a job of `medley demo`, a
directory, a hub name) it says something. Less than a minute with the tiny one.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import openai

QUESTION = "What is a fever?"


def tiny_model(directory: Path) -> Path:
    """Six layers, a few hundred tokens, random weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from medley.models.tokenizer import train_tokenizer

    tokenizer = train_tokenizer(["a fever is a high temperature", "sleep helps the body heal"] * 4, 300, directory)
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=6,
        num_attention_heads=4,
        max_position_embeddings=1024,
        initializer_range=0.1,
    )
    LlamaForCausalLM(config).save_pretrained(directory)
    return directory


@contextmanager
def served(model: str, stages: int) -> Iterator[dict[str, str]]:
    """What `medley serve` says of itself, for as long as it runs."""
    command = [sys.executable, "-m", "medley", "serve", model, "--local-stages", str(stages), "--port", "0", "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            sys.exit(f"medley serve ended with status {process.wait()}; its sentence is above")
        yield json.loads(line)
    finally:
        process.terminate()
        process.wait(60)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("model", nargs="?", default="")
    arguments.add_argument("--stages", type=int, default=3)
    given = arguments.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = given.model or str(tiny_model(Path(folder) / "tiny"))
        with served(model, given.stages) as where:
            print(f"{where['model']} answers at {where['url']}, over {given.stages} processes")
            with openai.OpenAI(base_url=where["url"], api_key="unused on loopback", timeout=120) as client:
                ask(client, where["model"])


def ask(client: openai.OpenAI, model: str) -> None:
    """A stream, and the same seed twice."""
    stream = client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": QUESTION}], max_tokens=40, temperature=0, stream=True
    )
    print(f"Q: {QUESTION}\nA: ", end="")
    for piece in stream:
        print(piece.choices[0].delta.content or "", end="", flush=True)
    print()
    twice = [
        client.completions.create(model=model, prompt="Drink", max_tokens=12, temperature=0.8, seed=7).choices[0].text
        for _ in range(2)
    ]
    print(f"the same seed twice: {'the same words' if twice[0] == twice[1] else 'DIFFERENT words'}")


if __name__ == "__main__":
    main()
