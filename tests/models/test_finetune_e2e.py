"""Stored models of two families, fine-tuned with LoRA through a real pool: plain transformers and PEFT load the
result, and say what Medley's own engine says.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedTokenizerFast,
)

import medley
from medley.engines.generate import Generator
from medley.runtimes.local import Pool

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

FACTS = [("What is the capital of France?", "Paris."), ("Which metal is liquid?", "Mercury is.")]
ROWS = [{"question": q, "answer": a, "group": str(n)} for n, (q, a) in enumerate(FACTS * 12)]


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    with Pool(tmp_path_factory.mktemp("pool"), workers=2, shard_nodes=1) as running:
        running.wait_ready()
        yield running


def tokenizer() -> Any:
    """A byte-level tokenizer as any project might have made it, without a chat template."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<pad>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator([f"{q} {a}" for q, a in FACTS], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


def network(family: str, words: Any) -> Any:
    torch.manual_seed(3)
    ids = {"pad_token_id": words.pad_token_id, "bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id}
    shape = {"vocab_size": len(words), "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, **ids}
    if family == "llama":
        return LlamaForCausalLM(LlamaConfig(**shape, intermediate_size=64, max_position_embeddings=128))
    return OPTForCausalLM(OPTConfig(**shape, ffn_dim=64, word_embed_proj_dim=32, max_position_embeddings=128))


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_a_fine_tuned_model_is_the_same_in_plain_peft(family: str, pool: Pool, tmp_path: Path) -> None:
    base, data = tmp_path / "base", tmp_path / "rows.jsonl"
    words = tokenizer()
    words.save_pretrained(str(base))
    network(family, words).save_pretrained(str(base))
    data.write_text("\n".join(json.dumps(row) for row in ROWS))

    job = {
        "name": f"tune-{family}",
        "model": {"base": str(base), "dtype": "fp32", "context_tokens": 64, "lora": {"rank": 4, "alpha": 8.0}},
        "data": {"source": "jsonl", "path": str(data), "heldout_fraction": 0.2},
        "train": {"epochs": 6, "batch_samples": 4, "optimizer": {"lr": 0.02}},
        "placement": {"encrypt": False},
    }
    result = medley.train(job, coordinator=pool.options.directory)

    assert result.state == "done" and result.path is not None
    assert result.heldout_last is not None and result.heldout_first is not None
    assert result.heldout_last < result.heldout_first
    tokens = torch.tensor([AutoTokenizer.from_pretrained(result.path)("Which metal is").input_ids])
    untouched = AutoModelForCausalLM.from_pretrained(base)
    before = untouched(input_ids=tokens).logits
    plain = PeftModel.from_pretrained(untouched, str(result.path)).eval()
    with torch.no_grad():
        theirs = plain(input_ids=tokens).logits
        ours = Generator.load(result.path, "fp32").model.eval()(input_ids=tokens).logits
        loaded = result.model()(input_ids=tokens).logits
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(loaded, theirs, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(before, theirs, atol=1e-2)
