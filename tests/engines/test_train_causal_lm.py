"""A language model from question to saved directory, with all its parts real and small."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from medley.data.prepare import prepare
from medley.engines.causal_lm import CausalLMTask, open_causal_lm, prepare_tokenizer
from medley.engines.train import TrainEngine, Work
from medley.models import presets
from medley.models.load import load_model
from medley.protocol.errors import UserError
from medley.protocol.spec import Data, JobSpec, Lora, Model, Optimizer, Train

LLAMA = presets.Preset("llama", 32, 2, 4, 2, 64, 128)
OPT = presets.Preset("opt", 32, 2, 4, 4, 64, 128)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(presets.PRESETS, "small-llama", LLAMA)
    monkeypatch.setitem(presets.PRESETS, "small-opt", OPT)


def job(tmp_path: Path, base: str = "small-llama", **model: Any) -> JobSpec:
    rows = [{"question": f"What is {n}?", "answer": f"It is the number {n}. " * (1 + n % 9)} for n in range(30)]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return JobSpec(
        model=Model(base=base, vocab_size=300, context_tokens=64, dtype="fp32", **model),
        data=Data(source="jsonl", path=str(path), heldout_fraction=0.2),
        train=Train(optimizer=Optimizer(clip_norm=0.0)),
    )


def open_task(spec: JobSpec, tmp_path: Path) -> CausalLMTask:
    prepare_tokenizer(spec, prepare(spec.data, 0, tmp_path / "data"), tmp_path / "tokenizer")
    return open_causal_lm(spec, tmp_path / "data", tmp_path / "tokenizer")


def engine(spec: JobSpec, task: CausalLMTask) -> TrainEngine:
    return TrainEngine(task, spec.train, spec.placement, torch.float32, lambda: 0)


@pytest.mark.parametrize("base", ["small-llama", "small-opt"])
def test_packing_changes_the_rows_but_not_the_update(base: str, tmp_path: Path) -> None:
    spec = job(tmp_path, base)
    packed = open_task(spec, tmp_path)
    padded = open_task(replace(spec, data=replace(spec.data, packing=False)), tmp_path)
    samples = list(packed.dataset()[:12])
    assert len(packed.rows(samples)) < len(padded.rows(samples))
    one, two = (engine(spec, task).run(Work(((0, 0, 12),)), 0.1) for task in (packed, padded))
    assert (one.weight, one.tokens) == (two.weight, two.tokens)
    assert one.loss_sum == pytest.approx(two.loss_sum, rel=1e-5)
    torch.testing.assert_close(one.update, two.update, atol=1e-3, rtol=1e-3)


def test_it_learns_and_its_directory_answers_in_plain_transformers(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    spec = job(tmp_path)
    made = engine(spec, open_task(spec, tmp_path))
    base, before = made.initial().clone(), made.evaluate(64)
    for round_number in range(6):
        made.load_base(round_number, base)
        base = base - made.run(Work(((round_number, 0, 20),), steps=5), 5e-3).update
    made.load_base(6, base)
    after = made.evaluate(64)
    assert after.loss < before.loss - 0.5
    assert after.tokens == before.tokens > 0
    made.save(tmp_path / "saved", base)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "saved")
    network = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    asked = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is 3?"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    assert network.generate(**asked, max_new_tokens=4).shape[1] == asked["input_ids"].shape[1] + 4


def test_two_engines_agree_bit_for_bit_when_deterministic(tmp_path: Path) -> None:
    spec = job(tmp_path)
    spec = replace(spec, train=replace(spec.train, deterministic=True, threads=1))
    task = open_task(spec, tmp_path)
    one, two = engine(spec, task), engine(spec, task)
    two.run(Work(((0, 10, 20),), steps=2), 0.01)
    two.load_base(0, two.initial())
    work = Work(((0, 0, 10),), steps=2)
    try:
        assert torch.equal(one.run(work, 0.01).update, two.run(work, 0.01).update)
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("base", ["small-llama", "small-opt"])
def test_adapters_alone_travel_and_load_in_plain_peft(base: str, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    spec = job(tmp_path, base)
    task = open_task(spec, tmp_path)
    task.save(load_model(spec.model, 0, task.tokenizer), tmp_path / "base")
    spec = replace(spec, model=replace(spec.model, base=str(tmp_path / "base"), lora=Lora(rank=2)))
    made = engine(spec, open_task(spec, tmp_path))
    assert all("lora_" in t.name for t in made.layout.tensors)
    flat = made.initial() - made.run(Work(((0, 0, 10),), steps=5), 1e-2).update
    made.save(tmp_path / "adapter", flat)
    plain = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(tmp_path / "base"), str(tmp_path / "adapter")
    ).eval()
    tokens = torch.tensor([[1, 4, 30, 40, 50]])
    expected = made.network.eval()(input_ids=tokens).logits
    torch.testing.assert_close(plain(input_ids=tokens).logits, expected)


def test_a_question_longer_than_the_context_is_refused_before_training(tmp_path: Path) -> None:
    spec = job(tmp_path)
    path = Path(spec.data.path)
    path.write_text(path.read_text() + json.dumps({"question": "why " * 200, "answer": "So."}) + "\n")
    with pytest.raises(UserError, match=r"question 'a/31' is \d+ tokens long, but model.context_tokens is 64"):
        open_task(spec, tmp_path)
