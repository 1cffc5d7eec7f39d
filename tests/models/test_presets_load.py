"""Presets are what they say; loading refuses what cannot work with one sentence."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from medley.models import load as loading
from medley.models import memory
from medley.models.dtype import choose_dtype
from medley.models.export import save
from medley.models.load import check_memory, config_of, load_model
from medley.models.presets import PRESETS, parameters
from medley.models.tokenizer import train_tokenizer
from medley.protocol.errors import UserError
from medley.protocol.spec import Lora, Model


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return train_tokenizer(["a cold is mild"] * 3, 300, tmp_path_factory.mktemp("tokenizer"))


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_has_the_parameters_it_says(name: str, tokenizer: Any) -> None:
    config = config_of(Model(base=name), tokenizer)
    with torch.device("meta"):
        network = AutoModelForCausalLM.from_config(config)
    assert sum(p.numel() for p in network.parameters()) == parameters(PRESETS[name], len(tokenizer))


def test_the_demo_model_has_about_five_million_parameters_and_the_benchmark_model_ten() -> None:
    assert 4.5e6 < parameters(PRESETS["llama-tiny"], 4096) < 5.5e6
    assert 9e6 < parameters(PRESETS["llama-10m"], 4096) < 11e6
    assert parameters(PRESETS["tinyllama-1.1b"], 0) == 1_100_048_384
    assert parameters(PRESETS["opt-1.3b"], 0) == 1_315_758_080


@pytest.mark.parametrize("base", ["llama-tiny", "opt-tiny"])
def test_a_saved_model_loads_in_plain_transformers_with_the_same_logits(
    base: str, tokenizer: Any, tmp_path: Path
) -> None:
    network = load_model(Model(base=base), 1, tokenizer)
    save(network, tokenizer, tmp_path)
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {p.name for p in tmp_path.iterdir()}
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    tokens = torch.tensor([[1, 5, 9, 20]])
    torch.testing.assert_close(again(input_ids=tokens).logits, network.eval()(input_ids=tokens).logits)
    second = load_model(Model(base=str(tmp_path)), 7, tokenizer).eval()
    torch.testing.assert_close(again(input_ids=tokens).logits, second(input_ids=tokens).logits)


def test_the_seed_decides_a_preset(tokenizer: Any) -> None:
    one, two, other = (next(load_model(Model(), seed, tokenizer).parameters()) for seed in (3, 3, 4))
    assert torch.equal(one, two) and not torch.equal(one, other)


def test_bf16_keeps_rotary_frequencies_exact(tokenizer: Any) -> None:
    network = load_model(Model(), 0, tokenizer, torch.bfloat16)
    assert {p.dtype for p in network.parameters()} == {torch.bfloat16}
    assert {b.dtype for name, b in network.named_buffers() if "inv_freq" in name} == {torch.float32}


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        (Model(base="llama-tinny"), "did you mean 'llama-tiny'"),
        (Model(base="nobody/nothing"), "model.base 'nobody/nothing' could not be loaded"),
        (Model(context_tokens=4096), "model.context_tokens is 4096, but 'llama-tiny' knows 1024 positions"),
        (Model(lora=Lora(rank=4, targets=("nose",))), r"targets \['nose'\] are not in the model; allowed: down_proj"),
    ],
)
def test_what_cannot_work_is_one_sentence(model: Model, sentence: str, tokenizer: Any) -> None:
    with pytest.raises(UserError, match=sentence) as caught:
        load_model(model, 0, tokenizer)
    assert "\n" not in str(caught.value)


def test_pickled_weights_are_refused(tokenizer: Any, tmp_path: Path) -> None:
    save(load_model(Model(), 0, tokenizer), tokenizer, tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="could not be loaded as safetensors"):
        load_model(Model(base=str(tmp_path)), 0, tokenizer)


def test_a_model_too_big_for_memory_is_refused_before_it_is_made(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "available_nbytes", lambda: 2 << 30)
    big = Model(base="tinyllama-1.1b")
    with pytest.raises(UserError, match=r"'tinyllama-1.1b' needs about 20.5 GiB .* but 2.0 GiB is free"):
        check_memory(big, tokenizer, torch.float32)
    with pytest.raises(UserError, match="needs about"):
        check_memory(replace(big, lora=Lora(rank=8)), tokenizer, torch.bfloat16)


def test_dtype_names() -> None:
    assert choose_dtype("fp32") is torch.float32
    assert choose_dtype("bf16") is torch.bfloat16
    assert choose_dtype("auto") in (torch.float32, torch.bfloat16)
    with pytest.raises(UserError, match="allowed: auto, fp32, bf16"):
        choose_dtype("int4")


def test_a_node_among_others_counts_on_its_share_of_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    from medley.models import memory
    from medley.runtimes.children.environment import MEMORY_SHARE

    assert MEMORY_SHARE == memory.SHARE
    monkeypatch.setattr(memory, "_groups_free", lambda: [10 << 30])
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: type("", (), {"available": 10 << 30}))
    assert memory.available_nbytes() == 10 << 30
    monkeypatch.setenv(memory.SHARE, "0.2")
    assert memory.available_nbytes() == 2 << 30


@pytest.mark.parametrize("newer", [True, False])
def test_a_process_believes_its_own_control_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, newer: bool) -> None:
    group = tmp_path / ("" if newer else "memory") / "ours"
    group.mkdir(parents=True)
    (group / ("memory.max" if newer else "memory.limit_in_bytes")).write_text("3000\n")
    (group / ("memory.current" if newer else "memory.usage_in_bytes")).write_text("2500\n")
    (group / "memory.stat").write_text("inactive_file 200\n" if newer else "inactive_file 7\ntotal_inactive_file 200\n")
    (tmp_path / "own").write_text("0::/ours\n" if newer else "4:cpu,memory:/ours\n")
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    monkeypatch.setattr(memory, "OWN", tmp_path / "own")
    monkeypatch.delenv(memory.SHARE, raising=False)
    assert memory.available_nbytes() == 700
