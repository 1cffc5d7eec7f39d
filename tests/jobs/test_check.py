"""Values that cannot work, alone or together: each a sentence that says what would be right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from medley.jobs.check import _RANGES, check
from medley.jobs.load import job_from_dict, load_job
from medley.jobs.words import type_at
from medley.protocol.errors import UserError
from medley.protocol.spec import JobSpec


def job(*words: tuple[str, Any]) -> JobSpec:
    data: dict[str, Any] = {}
    for path, value in words:
        *groups, last = path.split(".")
        group = data
        for name in groups:
            group = group.setdefault(name, {})
        group[last] = value
    return job_from_dict(data, "the test")


def refused(*words: tuple[str, Any]) -> str:
    with pytest.raises(UserError) as caught:
        check(job(*words))
    return str(caught.value)


def test_the_defaults_are_fine() -> None:
    check(JobSpec())


@pytest.mark.parametrize("name", ["demo", "medquad", "lora", "deterministic"])
def test_the_examples_are_fine(repository: Path, name: str) -> None:
    check(load_job(repository / "examples" / f"{name}.yaml"))


def test_every_range_is_of_a_number_that_exists() -> None:
    assert all(type_at(key.split(".")) in (int, float) for key, *_ in _RANGES)


RANGES = {
    ("train.optimizer.lr", 0): "train.optimizer.lr is 0.0, but must be above 0 and at most 1000",
    ("train.optimizer.lr", float("nan")): "train.optimizer.lr is nan, but must be above 0",
    ("train.epochs", 0): "train.epochs is 0.0, but must be above 0 and at most 1000000",
    ("train.epochs", float("inf")): "train.epochs is inf, but must be above 0 and at most 1000000",
    ("train.batch_samples", 0): "train.batch_samples is 0, but must be at least 1",
    ("train.sync.quorum", 0): "train.sync.quorum is 0.0, but must be above 0 and at most 1",
    ("train.sync.quorum", 1.01): "train.sync.quorum is 1.01, but must be above 0 and at most 1",
    ("train.sync.local_steps", 0): "train.sync.local_steps is 0, but must be at least 1",
    ("train.optimizer.momentum", 1): "train.optimizer.momentum is 1.0, but must be at least 0 and below 1",
    ("train.compression.density", 0): "train.compression.density is 0.0, but must be above 0 and at most 1",
    ("train.max_minutes", -1): "train.max_minutes is -1.0, but must be at least 0",
    ("train.seed", -1): "train.seed is -1, but must be at least 0",
    ("checkpoint.keep", 0): "checkpoint.keep is 0, but must be at least 1",
    ("placement.block_elements", 1023): "placement.block_elements is 1023, but must be at least 1024",
    ("placement.shards", 65): "placement.shards is 65, but must be at least 1 and at most 64",
    ("data.heldout_fraction", 0.6): "data.heldout_fraction is 0.6, but must be at least 0 and at most 0.5",
    ("model.context_tokens", 15): "model.context_tokens is 15, but must be at least 16",
    ("model.vocab_size", 255): "model.vocab_size is 255, but must be at least 262",
}


@pytest.mark.parametrize(("word", "sentence"), RANGES.items(), ids=lambda one: str(one)[:40])
def test_a_value_out_of_range_says_the_range(word: tuple[str, Any], sentence: str) -> None:
    assert refused(word).startswith(sentence)


def test_local_steps_belong_to_local_sgd() -> None:
    sentence = refused(("train.sync.local_steps", 8))
    assert sentence.startswith("train.sync.local_steps is 8, but mode 'sync' sends each step's gradient")
    assert "set train.sync.mode to 'local-sgd', or local_steps to 1" in sentence
    assert "mode 'async'" in refused(("train.sync.local_steps", 8), ("train.sync.mode", "async"))
    check(job(("train.sync.local_steps", 8), ("train.sync.mode", "local-sgd")))
    check(job(("train.sync.mode", "async")))


def test_deterministic_wants_what_no_machine_decides_for_itself() -> None:
    deterministic = ("train.deterministic", True)
    slots = ("train.sync.slots", 4)
    assert "set it to 4, for instance" in refused(deterministic)
    assert "set train.sync.mode to 'sync'" in refused(deterministic, slots, ("train.sync.mode", "async"))
    assert "set train.compression.kind to 'none'" in refused(deterministic, slots, ("train.compression.kind", "int8"))
    assert "max_minutes to 0" in refused(deterministic, slots, ("train.max_minutes", 2))
    assert "set model.dtype to 'fp32' or 'bf16'" in refused(deterministic, slots)
    check(job(deterministic, slots, ("model.dtype", "fp32")))


def test_a_task_and_its_data_come_together() -> None:
    assert "set data.source to 'task'" in refused(("task", "digits:Digits"))
    assert "set task to 'module:Class'" in refused(("data.source", "task"))
    assert "must be 'module:Class'" in refused(("task", "digits"), ("data.source", "task"))
    assert "task is empty" in refused(("task_options.n", 1))
    for number in (float("nan"), float("inf"), 1 << 63):
        wrong = ("task", "a:B"), ("data.source", "task"), ("task_options.n", number)
        assert refused(*wrong) == "task_options.n must be a finite number of at most 63 bits"
    check(job(("task", "digits:Digits"), ("data.source", "task"), ("task_options.n", 1)))


def test_data_must_be_there(tmp_path: Path) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.touch()
    source = ("data.source", "jsonl")
    assert "'jsonl' needs the jsonl file: set data.path" in refused(source)
    assert "does not exist: give the jsonl file" in refused(source, ("data.path", str(tmp_path / "no.jsonl")))
    assert "is a directory, but data.source 'jsonl' reads one file" in refused(source, ("data.path", str(tmp_path)))
    assert "is empty: it must hold at least one question" in refused(source, ("data.path", str(empty)))
    assert "name of a data set on the hub" in refused(("data.source", "hub"))
    assert "give a clone of the MedQuAD repository" in refused(("data.source", "medquad"), ("data.path", str(empty)))
    assert "'builtin', which reads no file" in refused(("data.path", str(empty)))
    check(job(("data.source", "medquad")))
    empty.write_text('{"question": "a", "answer": "b"}\n')
    check(job(source, ("data.path", str(empty))))


def test_the_rest_of_the_pairs_that_clash() -> None:
    plateau = ("train.optimizer.schedule", "plateau")
    assert "train.eval_every_commits is 0: set it to 20" in refused(plateau, ("train.eval_every_commits", 0))
    assert "data.heldout_fraction is 0: set it to 0.05" in refused(plateau, ("data.heldout_fraction", 0))
    assert "but adamw has none" in refused(("train.optimizer.momentum", 0.9))
    assert "item 2 of train.optimizer.betas is 1.0" in refused(("train.optimizer.betas", [0.9, 1]))
    assert "llama-tiny has positions for 1024" in refused(("model.context_tokens", 2048))
    assert "set a rank from 8 to 64" in refused(("model.lora.targets", ["q"]))
    assert "has no staleness bound" in refused(("train.sync.staleness_adaptive", True))
    assert "mode 'async' has no rounds" in refused(("train.sync.backups", 1), ("train.sync.mode", "async"))
    assert "model.base is empty" in refused(("model.base", ""))
    check(job(plateau))
    check(job(("train.optimizer.momentum", 0.9), ("train.optimizer.kind", "sgd")))


@pytest.mark.parametrize("name", ["", "a b", "../x", "-x", "x" * 64, "é"])
def test_a_name_can_be_a_directory_everywhere(name: str) -> None:
    assert "must be 1 to 63 letters, digits" in refused(("name", name))
