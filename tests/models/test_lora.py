"""Adapters: only they are trained, both factors lie together, and plain PEFT loads what was saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from medley.engines.stored import load_stored
from medley.models.export import save
from medley.models.load import load_model
from medley.models.lora import placement_key
from medley.models.tokenizer import train_tokenizer
from medley.protocol.spec import Lora, Model


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return train_tokenizer(["a cold is mild"] * 3, 300, tmp_path_factory.mktemp("tokenizer"))


@pytest.mark.parametrize("base", ["llama-tiny", "opt-tiny"])
@pytest.mark.parametrize("rslora", [False, True])
def test_an_adapter_loads_in_plain_peft_with_the_same_logits(
    base: str, rslora: bool, tokenizer: Any, tmp_path: Path
) -> None:
    save(load_model(Model(base=base), 0, tokenizer), tokenizer, tmp_path / "base")
    network = load_model(Model(base=str(tmp_path / "base"), lora=Lora(rank=4, rslora=rslora)), 0, tokenizer)
    torch.manual_seed(5)
    for p in network.parameters():
        if p.requires_grad:
            p.data += torch.randn_like(p) * 0.1
    save(network, tokenizer, tmp_path / "adapter")
    assert {"adapter_config.json", "adapter_model.safetensors"} <= {p.name for p in (tmp_path / "adapter").iterdir()}
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    tokens = torch.tensor([[1, 5, 9, 20]])
    before = plain(input_ids=tokens).logits
    again = PeftModel.from_pretrained(plain, str(tmp_path / "adapter")).eval()
    expected = network.eval()(input_ids=tokens).logits
    torch.testing.assert_close(again(input_ids=tokens).logits, expected)
    assert not torch.allclose(before, expected, atol=1e-3)


@pytest.mark.parametrize("base", ["llama-tiny", "opt-tiny"])
def test_a_base_that_was_drawn_at_random_goes_with_its_adapter(base: str, tokenizer: Any, tmp_path: Path) -> None:
    network = load_model(Model(base=base, lora=Lora(rank=4)), 0, tokenizer)
    torch.manual_seed(5)
    for p in network.parameters():
        if p.requires_grad:
            p.data += torch.randn_like(p) * 0.1
    for _ in range(2):  # saving leaves the network as it was
        save(network, tokenizer, tmp_path / "adapter")
    tokens = torch.tensor([[1, 5, 9, 20]])
    expected = network.eval()(input_ids=tokens).logits
    moved = (tmp_path / "adapter").rename(tmp_path / "elsewhere")
    again, _ = load_stored(moved, "fp32")
    torch.testing.assert_close(again.cpu().eval()(input_ids=tokens).logits, expected, atol=1e-4, rtol=1e-4)


def test_every_linear_layer_of_the_blocks_is_adapted_and_nothing_else_is_trained(tokenizer: Any) -> None:
    network = load_model(Model(lora=Lora(rank=2)), 0, tokenizer)
    trained = [name for name, p in network.named_parameters() if p.requires_grad]
    assert all("lora_" in name for name in trained)
    assert len(trained) == 2 * 7 * 2
    assert not any("lm_head" in name for name in trained)


def test_both_factors_of_an_adapter_share_a_placement_key(tokenizer: Any) -> None:
    network = load_model(Model(lora=Lora(rank=2)), 0, tokenizer)
    keys = [placement_key(name) for name, p in network.named_parameters() if p.requires_grad]
    assert all(keys) and len(set(keys)) == len(keys) // 2
    assert placement_key("model.layers.0.mlp.up_proj.weight") == ""
