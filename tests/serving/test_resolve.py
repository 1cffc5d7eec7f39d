"""A model is a job, a directory, or a hub name, and a wrong one is a sentence that helps."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from medley.engines.hub import hub_directory
from medley.jobs.names import is_of, new_id
from medley.protocol.errors import UserError
from medley.serving.resolve import exported_jobs, find_export, resolve_model


def model_at(directory: Path, weights: str = "model.safetensors", config: str = "config.json") -> Path:
    directory.mkdir(parents=True)
    (directory / config).write_text("{}")
    (directory / weights).write_bytes(b"")
    return directory


@pytest.fixture
def state(tmp_path: Path) -> Path:
    model_at(tmp_path / "state" / "exports" / "medical-qa")
    return tmp_path / "state"


def no_download(name: str) -> Path:
    raise OSError("the hub cannot be reached and the model is not in the local cache")


def test_job(state: Path) -> None:
    found = resolve_model("medical-qa", state)
    assert (found.kind, found.name) == ("job", "medical-qa")
    assert find_export("medical-qa", state) == found.directory
    assert exported_jobs(state / "nowhere") == []


def test_directory(tmp_path: Path, state: Path) -> None:
    found = resolve_model(str(model_at(tmp_path / "mine")), state)
    assert (found.kind, found.name) == ("directory", "mine")
    adapter = model_at(tmp_path / "adapter", "adapter_model.safetensors", "adapter_config.json")
    assert resolve_model(str(adapter), state).directory == adapter


def test_path_is_never_a_job(state: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    model_at(tmp_path / "medical-qa")
    assert resolve_model("./medical-qa", state).kind == "directory"
    assert resolve_model("medical-qa", state).kind == "job"


@pytest.mark.parametrize("name", ["../exports/medical-qa", "/medical-qa", "..", "a/b/c", "", "~nobody/x", "a b"])
def test_no_way_out_of_the_exports(state: Path, name: str) -> None:
    with pytest.raises(UserError):
        resolve_model(name, state, no_download)


def test_hub_name(state: Path, tmp_path: Path) -> None:
    there = model_at(tmp_path / "cache")
    found = resolve_model("org/model", state, lambda name: there)
    assert (found.kind, found.name) == ("hub", "org/model")


def test_nothing_of_the_three_names_them_and_the_nearest_job(state: Path) -> None:
    with pytest.raises(UserError) as refused:
        resolve_model("medical-qu", state, no_download)
    sentence = str(refused.value)
    for part in ("no finished job", "no directory", "hub", "did you mean 'medical-qa'?"):
        assert part in sentence


def test_offline_hub_is_one_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(OSError, match="cannot be reached"):
        hub_directory("org/model-that-is-nowhere")


def test_directory_without_a_model(tmp_path: Path, state: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="neither config.json"):
        resolve_model(str(tmp_path / "empty"), state)
    with pytest.raises(UserError, match="safetensors"):
        resolve_model(str(model_at(tmp_path / "old", "pytorch_model.bin")), state)


def test_a_job_is_found_by_its_identifier_and_the_newest_by_its_name(state: Path) -> None:
    old = model_at(state / "coordinator" / "exports" / "my-job-0a1b2c")
    new = model_at(state / "runs" / "somewhere" / "exports" / "my-job-ffffff")
    model_at(state / "exports" / "my-job-of-another-name-012345")
    os.utime(old, (1, 1))
    assert resolve_model("my-job", state).directory == new
    assert resolve_model("my job", state).directory == new
    assert resolve_model("my-job-0a1b2c", state).directory == old
    assert find_export("my", state) is None
    assert "my-job-ffffff" in exported_jobs(state)


def test_every_identifier_is_of_its_name() -> None:
    for name in ("demo", "a.b c!", "x" * 63, "ab-012345", "..."):
        assert is_of(new_id(name), name)
    assert not is_of(new_id("demo-2"), "demo")
