"""Layers move while answers go on: a machine joins, takes its share with the KV, leaves again; no stream notices."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from bench.pipeline_rig import Rig, rig
from tests.serving.conftest import byte_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from medley.engines.sampling import Sampling
from medley.models.memory import available_nbytes
from medley.policies.pipeline.describe import Wanted
from medley.serving.fleet import ServeOptions

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

LAYERS, SLOW = 12, 4.0
LAYERS_THAT_FIT = 5.5  # in a third of this machine's memory
PROMPTS = [[3 + (5 * p + 7 * i) % 250 for i in range(20 + p)] for p in range(4)]
TOKENS = 400
KV_NBYTES = 2 * 2 * 32 * 4  # of a token in a layer: keys and values, two heads of 32, fp32


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("moving") / "moving"
    torch.manual_seed(6)
    config = LlamaConfig(
        vocab_size=258,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        initializer_range=0.12,
        bos_token_id=0,
    )
    network = LlamaForCausalLM(config)
    network.generation_config.eos_token_id = network.config.eos_token_id = None
    network.save_pretrained(str(folder))
    byte_tokenizer().save_pretrained(str(folder))
    return folder


@contextmanager
def joined(bench: Rig, directory: Path) -> Iterator[None]:
    """A further machine that is as fast as this one really is."""
    token = bench.pool.operator.ask("token")["token"]
    words = ["join", "--token", token, "--name", "fast", "--dir", str(directory)]
    process = subprocess.Popen(
        [sys.executable, "-m", "medley", *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield
    finally:
        process.terminate()
        process.wait(30)


async def together(bench: Rig) -> list[list[int]]:
    """Four long answers at once, each with its tokens."""
    asked = [bench.ask(prompt, Sampling(TOKENS, 0.5, seed=p, logprobs=0)) for p, prompt in enumerate(PROMPTS)]
    return [one.tokens for one in await asyncio.gather(*asked)]


async def until(bench: Rig, condition: Any, undisturbed: list[list[int]]) -> None:
    """The same answers again and again, each time the same, until it has happened."""
    for _ in range(60):
        assert await together(bench) == undisturbed
        if condition(bench.note()):
            return
    raise TimeoutError(str(bench.note()))


def promised() -> int:
    """Tokens of KV for which no third of this machine has room for half of the layers."""
    third = available_nbytes() / 3 * 0.8 - Wanted().process_nbytes
    return int(third / LAYERS_THAT_FIT / KV_NBYTES)


def layers_of(note: dict[str, Any], name: str) -> int:
    return sum(h["end"] - h["first"] for p in note["pipelines"] for h in p["hops"] if h["machine"] == name)


def copied(note: dict[str, Any]) -> int:
    """Bytes of KV that went from machine to machine."""
    return sum(machine["shadow_nbytes"] for machine in note["machines"])


def test_a_machine_joins_and_leaves_while_requests_run(directory: Path, tmp_path: Path) -> None:
    options = ServeOptions("fp32", "throughput", expected=3, local=True, kv_tokens=promised(), draft=False)
    slow = (SLOW, SLOW, SLOW)
    with rig(directory, tmp_path / "pool", 3, options, encrypt=True, compute_factors=slow) as bench:
        undisturbed = asyncio.run(together(bench))
        before = bench.note()["pipelines"][0]
        assert len(before["hops"]) == 3
        with joined(bench, tmp_path / "fast"):
            asyncio.run(until(bench, lambda note: layers_of(note, "fast") > 0, undisturbed))
            after = bench.note()["pipelines"][0]
            assert after["generation"] > before["generation"]
            assert after["recomputed"] == 0, "the KV moved with its layers"
            assert copied(bench.note()) >= layers_of(bench.note(), "fast") * sum(map(len, PROMPTS)) * KV_NBYTES
            bench.engine.drain("fast")
            asyncio.run(until(bench, lambda note: not layers_of(note, "fast"), undisturbed))
            assert bench.note()["pipelines"][0]["recomputed"] == 0
