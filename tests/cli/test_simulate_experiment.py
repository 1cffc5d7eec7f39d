"""`medley simulate EXPERIMENT.yaml` as a person calls it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from medley.cli.main import run
from medley.jobs.experiments import session

TINY = """
name: tiny
until_s: 3600
heartbeat_ms: 5000
fleet: {w: {count: 2, device: t4}}
jobs: {a: {model: {parameters: 1e5, samples: 128}, train: {batch_samples: 32}}}
sweep: {jobs.a.train.sync.mode: [sync, async]}
success: [state == done, completion_s <= 0.001]
"""


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY, encoding="utf-8")
    return path


def test_an_experiment_ends_with_what_one_learns_and_where_it_is(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run(["simulate", str(tiny), "--out", str(out), "--jobs", "1"]) == 0
    said = capsys.readouterr().out
    assert "2 runs: 2 done." in said and "Time to completion" in said
    assert "fails: completion_s" in said and str(out / "report.html") in said

    assert run(["simulate", str(tiny), "--out", str(out), "--json", "-"]) == 0
    lines = capsys.readouterr().out.splitlines()
    told = json.loads(lines[-1])
    assert len(lines) == 1 and told["finished"] == told["runs"] == 2 and told["missing"] == 0
    assert told["points"][0]["labels"] == {"jobs.a.train.sync.mode": "sync"}
    assert told["points"][0]["fails"] == ["completion_s <= 0.001"]


def test_ctrl_c_says_what_is_kept_and_what_is_missing(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(session.runner, "run_all", interrupted)
    assert run(["simulate", str(tiny), "--out", str(tmp_path / "out")]) == 130
    said = capsys.readouterr().err
    assert (
        "0 of 2 runs are kept" in said and "the same command goes on from there; missing: sync (1), async (1)" in said
    )


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ["missing.yaml"],
            "missing.yaml cannot be read (No such file or directory); give the path of a file with an experiment",
        ),
        (["TINY", "--check"], "give an experiment or --check, not both"),
        ([], "give an experiment file"),
        (["--check", "--out", "here"], "--out, --seed and --set belong to an experiment"),
        (["TINY", "--set", "network.profile=moon"], "there is no preset 'moon'"),
        (["TINY", "--set", "network.profil=good"], "did you mean 'network.profile'?"),
        (["TINY", "--set", "fleet.w.count=20000"], "fleet.w.count is 20000, but must be at most 10000"),
        (["TINY", "--json", "nowhere/x.json"], "its directory does not exist"),
        (["TINY", "--out", "TINY"], "is a file"),
    ],
)
def test_a_mistake_is_one_sentence_and_status_2(
    tiny: Path, capsys: pytest.CaptureFixture[str], words: list[str], sentence: str
) -> None:
    assert run(["simulate", *(str(tiny) if word == "TINY" else word for word in words)]) == 2
    said = capsys.readouterr().err
    assert sentence in said and said.count("\n") == 1 and said.startswith("medley: ")
