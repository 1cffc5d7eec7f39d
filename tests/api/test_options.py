"""What `medley.train` makes of a job and keywords, before anything is started."""

from __future__ import annotations

from pathlib import Path

import pytest

import medley
from medley.api import INSIDE, _folders, _spec, train
from medley.protocol.errors import UserError
from medley.protocol.spec import JobSpec


def test_a_task_by_name_brings_its_own_data() -> None:
    spec = _spec("digits:Digits", {"epochs": 3})
    assert (spec.task, spec.name, spec.data.source, spec.train.epochs) == ("digits:Digits", "digits", "task", 3)


def test_groups_join_what_is_there() -> None:
    job = {"name": "a", "train": {"epochs": 2, "optimizer": {"lr": 0.1}}}
    spec = _spec(job, {"train": {"seed": 4, "optimizer": {"kind": "sgd"}}})
    assert (spec.train.epochs, spec.train.seed) == (2, 4)
    assert (spec.train.optimizer.lr, spec.train.optimizer.kind) == (0.1, "sgd")
    assert job["train"] == {"epochs": 2, "optimizer": {"lr": 0.1}}, "the person's own dict is left alone"


def test_a_keyword_is_the_end_of_a_path() -> None:
    spec = _spec(JobSpec(), {"optimizer__lr": 0.5, "local_steps": 4, "mode": "local-sgd", "lora__rank": 8})
    assert (spec.train.optimizer.lr, spec.train.sync.local_steps, spec.model.lora.rank) == (0.5, 4, 8)


def test_a_file_is_read_with_its_sentences(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text("name: from-file\ntrain: {epochs: 7}\n")
    assert _spec(path, {"seed": 1}).train.epochs == 7
    path.write_text("nome: x\n")
    with pytest.raises(UserError, match=r"job\.yaml line 1.*did you mean 'name'"):
        _spec(str(path), {})


@pytest.mark.parametrize(
    "job, sets, sentence",
    [
        ({}, {"epoch": 1}, "no option 'epoch'; did you mean 'epochs'"),
        ({}, {"lr": 1}, "optimizer__lr or outer__lr"),
        ({}, {"epochs": "many"}, "train.epochs"),
        ({}, {"epochs": -1}, "train.epochs is -1"),
        (3, {}, "a job is a Task class"),
        ("nowhere.yaml", {}, "nowhere.yaml"),
    ],
)
def test_mistakes_are_one_sentence(job: object, sets: dict[str, object], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        _spec(job, sets)


def test_code_that_no_other_process_can_import_is_refused() -> None:
    class Local:
        pass

    with pytest.raises(UserError, match="move it to the top of its file"):
        train(Local)
    with pytest.raises(UserError, match="there is no module 'no_such_module_here'"):
        train("no_such_module_here:Task")


def test_installed_modules_need_no_path() -> None:
    assert _folders("msgspec") == ()


def test_a_script_without_a_guard_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(INSIDE, "1")
    with pytest.raises(UserError, match="__main__"):
        train({})


def test_exports_are_there() -> None:
    assert set(medley.__all__) <= set(dir(medley))
    assert medley.UserError is UserError and medley.train is train
    with pytest.raises(AttributeError, match="nothing"):
        _ = medley.nothing


def test_a_job_without_a_result_has_nothing_to_ask() -> None:
    from medley.api import Result

    left = Result("a-012345", "cancelled", JobSpec(), None, None, None, None, 0.0, 0, None)
    for call in (left.model, lambda: left.answer("What is a fever?")):
        with pytest.raises(UserError, match="a-012345 is cancelled and left no"):
            call()
