"""A language model from nothing to an answer, through a whole pool; the same bits whoever computes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.e2e.house import House, house

TINY = {
    "model": {"base": "llama-tiny", "dtype": "fp32", "vocab_size": 512, "context_tokens": 64},
    "data": {"max_samples": 40, "heldout_samples": 4},
}


def tiny(**train: Any) -> dict[str, Any]:
    options = {"batch_samples": 2, "eval_every_commits": 0, "optimizer": {"lr": 1e-3, "warmup_fraction": 0.0}}
    return TINY | {
        "name": "tiny",
        "train": options | train,
        "placement": {"shards": 2, "encrypt": False},
        "checkpoint": {"every_s": 3600.0, "every_commits": 3},
    }


def weights(it: House) -> bytes:
    seen = it.until_over()
    assert seen["state"] == "done", seen
    assert (seen["samples"], seen["doubled"]) == (seen["total"], 0)
    return (it.directory / "exports" / it.job / "model.safetensors").read_bytes()


@pytest.mark.timeout(300)
def test_a_language_model_is_trained_measured_saved_and_loads(tmp_path: Path) -> None:
    with house(tmp_path / "pool", workers=2, shard_nodes=2) as it:
        more = TINY["data"] | {"max_samples": 240}
        it.submit(tiny(eval_every_commits=5, batch_samples=8) | {"data": more})
        seen = it.until_over()
        assert seen["state"] == "done", seen
        assert (seen["samples"], seen["doubled"]) == (seen["total"], 0)
        assert seen["heldout_last"] < seen["heldout_first"]
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(seen["export"])
        assert model.config.vocab_size == 512


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_deterministic_run_gives_the_same_bits_whoever_computes_and_whoever_dies(tmp_path: Path) -> None:
    spec = tiny(deterministic=True, sync={"mode": "sync", "slots": 4}, seed=7)
    found = {}
    for name, workers in (("once", 3), ("again", 3), ("alone", 1)):
        with house(tmp_path / name, workers=workers, shard_nodes=2) as it:
            it.submit(spec)
            found[name] = weights(it)
    with house(tmp_path / "storm", workers=3, shard_nodes=2) as it:
        it.submit(spec)
        it.until_version(2)
        it.kill("worker-1")
        it.kill("shard-1-engine")
        it.until_version(2)
        it.kill("coordinator")
        it.pool.stop()
        it.start()
        found["storm"] = weights(it)
    with house(tmp_path / "stopped", workers=3, shard_nodes=2) as it:
        it.submit(spec)
        it.until_version(3)
        it.pool.stop()
        it.start()
        found["stopped"] = weights(it)
    assert len(set(found.values())) == 1, {name: hash(bits) for name, bits in found.items()}
