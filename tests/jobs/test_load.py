"""A job file: what it becomes, and the sentence for each way to get it wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from medley.jobs.load import job_from_dict, load_job
from medley.protocol.errors import UserError
from medley.protocol.spec import JobSpec

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def writes(text: str, name: str = "job.yaml") -> Path:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return writes


def test_yaml_becomes_a_spec(write: Write) -> None:
    spec = load_job(write("name: x\ntrain:\n  epochs: 2\n  optimizer:\n    lr: 1e-3\n    betas: [0.9, 0.99]\n"))
    assert (spec.name, spec.train.epochs, spec.train.optimizer.lr) == ("x", 2.0, 0.001)
    assert spec.train.optimizer.betas == (0.9, 0.99)
    assert spec.model == JobSpec().model


@pytest.mark.parametrize("name", ["job.json", "job.yaml"])
def test_json_is_read_by_suffix_and_by_content(write: Write, name: str) -> None:
    text = json.dumps({"name": "x", "train": {"sync": {"mode": "async"}}}, indent="\t")
    assert load_job(write(text, name)).train.sync.mode == "async"


def test_a_group_whose_keys_are_all_commented_out_is_empty(write: Write) -> None:
    assert load_job(write("name: x\ntrain:\n  # epochs: 3\n")).train == JobSpec().train


def test_what_was_loaded_travels_and_comes_back(write: Write) -> None:
    spec = load_job(
        write("name: x\ntask: a:B\ntask_options: {n: 1, flag: true, s: text, f: 0.5}\ndata: {source: task}\n")
    )
    assert job_from_dict(json.loads(msgspec.json.encode(spec)), "the event log") == spec


def test_set_overrides_the_file_with_yaml_values(write: Write) -> None:
    path = write("name: x\ntrain: {epochs: 1}\n")
    spec = load_job(path, ["train.epochs=2.5", "train.deterministic=true", "model.lora.targets=[q, v]", "name=y=z"])
    assert (spec.train.epochs, spec.train.deterministic, spec.name) == (2.5, True, "y=z")
    assert spec.model.lora.targets == ("q", "v")
    assert load_job(path, ["data.path="]).data.path == ""


def test_a_path_that_exists_beside_the_file_becomes_absolute(write: Write, tmp_path: Path) -> None:
    (tmp_path / "qa.jsonl").write_text("{}\n")
    (tmp_path / "base").mkdir()
    path = write("data: {source: jsonl, path: qa.jsonl}\nmodel: {base: base}\n")
    spec = load_job(path)
    assert spec.data.path == str(tmp_path / "qa.jsonl")
    assert spec.model.base == str(tmp_path / "base")


def test_a_path_typed_on_the_command_line_is_meant_from_here(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    for directory in (here, tmp_path):
        (directory / "qa.jsonl").write_text("{}\n")
    monkeypatch.chdir(here)
    spec = load_job(write("data: {source: jsonl}\n"), ["data.path=qa.jsonl"])
    assert spec.data.path == str(here / "qa.jsonl")


def test_names_that_are_no_path_stay(write: Write, tmp_path: Path) -> None:
    (tmp_path / "llama-tiny").mkdir()
    (tmp_path / "squad").mkdir()
    spec = load_job(write("data: {source: hub, path: squad}\nmodel: {base: llama-tiny}\n"))
    assert (spec.model.base, spec.data.path) == ("llama-tiny", "squad")


WRONG = {
    "unknown key": (
        "name: x\ntrain:\n  epoch: 3\n",
        "job.yaml line 3: there is no key 'epoch' in train; did you mean 'epochs'?",
    ),
    "misplaced key": ("lr: 3\n", "job.yaml line 1: there is no key 'lr'; did you mean 'train.optimizer.lr'?"),
    "strange key": (
        "3: 4\n",
        "job.yaml line 1: there is no key '3'; allowed: checkpoint, data, model, name, network, placement, schedule, "
        "task, ",
    ),
    "text for a number": (
        "train:\n  optimizer:\n    kind: adamw\n    lr: fast\n",
        "job.yaml line 4: train.optimizer.lr is 'fast', but must be a number",
    ),
    "fraction for a count": (
        "train: {batch_samples: 1.5}\n",
        "job.yaml line 1: train.batch_samples is 1.5, but must be a whole number",
    ),
    "truth for a count": (
        "train: {batch_samples: yes}\n",
        "job.yaml line 1: train.batch_samples is true, but must be a whole number",
    ),
    "count for a truth": (
        "train:\n  deterministic: 1\n",
        "job.yaml line 2: train.deterministic is 1, but must be true or false",
    ),
    "number for text": ("name: 3\n", "job.yaml line 1: name is 3, but must be text: put it in quotes"),
    "date for text": ("name: 2026-01-02\n", "job.yaml line 1: name is 2026-01-02, but must be text: put it in quotes"),
    "nothing": ("train:\n  epochs:\n", "job.yaml line 2: train.epochs is empty, but must be a number"),
    "word not allowed": (
        "train:\n  sync:\n    mode: asynch\n",
        "job.yaml line 3: train.sync.mode is 'asynch', but must be one of 'sync', 'async', 'local-sgd'; "
        "did you mean 'async'?",
    ),
    "number not allowed": (
        "placement: {replication: 3}\n",
        "job.yaml line 1: placement.replication is 3, but must be 1 or 2",
    ),
    "value for a group": (
        "model: llama-tiny\n",
        "job.yaml line 1: model is 'llama-tiny', but must be a group of keys (base, ",
    ),
    "word for a list": (
        "model:\n  lora: {targets: q_proj}\n",
        "job.yaml line 2: model.lora.targets is 'q_proj', but must be a list of words",
    ),
    "list too short": (
        "train: {optimizer: {betas: [1]}}\n",
        "job.yaml line 1: train.optimizer.betas is a list of 1, but must be a list of 2 numbers",
    ),
    "item of a list": (
        "train: {optimizer: {betas: [0.9, x]}}\n",
        "job.yaml line 1: item 2 of train.optimizer.betas is 'x', but must be a number",
    ),
    "option of a task": (
        "task_options:\n  n: [1]\n",
        "job.yaml line 2: task_options.n is a list of 1, but must be a number, text, or true or false",
    ),
    "key that is no text": (
        "task_options: {1: 2}\n",
        "job.yaml line 1: the key 1 in task_options must be text: put it in quotes",
    ),
    "key twice": ("name: x\nname: y\n", "job.yaml line 2: key 'name' is given twice (first in line 1)"),
    "not YAML": ("name: x\n\ttrain: 1\n", "job.yaml line 2: this is not YAML (found character '\\t'"),
    "unclosed": ("a: [\n", "job.yaml line 2: this is not YAML (expected the node content"),
    "unknown alias": ("name: *b\n", "job.yaml line 1: this is not YAML (found undefined alias"),
    "a list": ("- 1\n", "job.yaml holds a list of 1, but a job file is a group of keys such as 'name: x'"),
    "a word": ("hello\n", "job.yaml holds 'hello', but a job file is a group of keys such as 'name: x'"),
    "empty": ("# nothing\n", "job.yaml is empty; write at least 'name: my-job'"),
    "code": ("name: !!python/object/apply:os.getpid []\n", "job.yaml line 1: this is not YAML (could not determine"),
    "control character": ("name: \x00\n", "job.yaml is not YAML (unacceptable character #x0000"),
    "endless number": ("name: " + "9" * 5000, "job.yaml is not YAML (Exceeds the limit"),
    "too large": (
        "train: {epochs: 1" + "0" * 400 + "}",
        "job.yaml line 1: train.epochs is a number of more than 63 bits",
    ),
    "deep": ("a: " + "[" * 5000, "job.yaml"),
}


@pytest.mark.parametrize(("text", "sentence"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_with_a_file_is_one_sentence(write: Write, text: str, sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        load_job(write(text))
    assert str(caught.value).startswith(sentence)
    assert "\n" not in str(caught.value)


WRONG_JSON = {
    "comma": ('{"name": "x",}', "job.json line 1: this is not JSON (expecting"),
    "twice": ('{"name": "x", "name": "y"}', "job.json: key 'name' is given twice; keep one of them"),
    "type": ('{\n "train": {\n  "epochs": "a"}}', "job.json line 3: train.epochs is 'a', but must be a number"),
    "endless number": ('{"name": ' + "9" * 5000 + "}", "job.json is not JSON (Exceeds the limit"),
    "cut off": ('{"name":', "job.json line 1: this is not JSON (expecting value)"),
}


@pytest.mark.parametrize(("text", "sentence"), WRONG_JSON.values(), ids=WRONG_JSON)
def test_what_is_wrong_with_json_too(write: Write, text: str, sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        load_job(write(text, "job.json"))
    assert str(caught.value).startswith(sentence)


WRONG_SETS = {
    "x": "--set x: write KEY=VALUE, such as --set train.epochs=2",
    "train..epochs=2": "--set train..epochs=2: write KEY=VALUE",
    "name.x=4": "--set name.x=4: name is a value and has no keys below it",
    "name=[": "--set name=[: the value is not YAML",
    "train.epoch=3": "--set train.epoch=3: there is no key 'epoch' in train; did you mean 'epochs'?",
    "train.optimizer.lr=fast": "--set train.optimizer.lr=fast: train.optimizer.lr is 'fast', but must be a number",
    "train=3": "--set train=3: train is 3, but must be a group of keys (epochs, ",
}


@pytest.mark.parametrize(("word", "sentence"), WRONG_SETS.items(), ids=WRONG_SETS)
def test_what_is_wrong_with_an_override_names_it(write: Write, word: str, sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        load_job(write("name: x\n"), [word])
    assert str(caught.value).startswith(sentence)


def test_files_that_are_none(tmp_path: Path, write: Write) -> None:
    missing = tmp_path / "none.yaml"
    with pytest.raises(UserError, match=r"none\.yaml cannot be read \(No such file or directory\)"):
        load_job(missing)
    with pytest.raises(UserError, match="is a directory; give the job file in it"):
        load_job(tmp_path)
    with pytest.raises(UserError, match="has more than 1048576 bytes"):
        load_job(write("#" * (1 << 20) + "\n"))
    (tmp_path / "latin.yaml").write_bytes(b"name: caf\xe9\n")
    with pytest.raises(UserError, match=r"is not UTF-8 text \(byte 9\)"):
        load_job(tmp_path / "latin.yaml")


def test_data_of_a_stranger_names_where_it_came_from() -> None:
    with pytest.raises(UserError, match="^the submitted job: there is no key 'nmae'; did you mean 'name'"):
        job_from_dict({"nmae": "x"}, "the submitted job")
