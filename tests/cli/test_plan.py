"""`medley plan`: described machines, this one measured, pins, and sentences for what cannot be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.tinymodels import saved, tiny

from medley.cli.main import run

FLEET = """
network: none
fleet:
  desk: {device: {gflops: 400, memory_gib: 4.0, memory_gb_per_s: 40}}
  slow: {count: 2, device: {gflops: 100, memory_gib: 3.4, memory_gb_per_s: 10}}
"""


@pytest.fixture
def fleet(tmp_path: Path) -> str:
    (tmp_path / "fleet.yaml").write_text(FLEET)
    return str(tmp_path / "fleet.yaml")


def planned(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, object]:
    assert run(["plan", *words, "--json"]) == 0
    found: dict[str, object] = json.loads(capsys.readouterr().out)
    return found


def test_described_machines_share_what_none_of_them_holds(fleet: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("tinyllama-1.1b", "--nodes", fleet)
    assert run(["plan", *words]) == 0
    told = capsys.readouterr().out
    assert "22 layers, 2.0 GiB, on 3 machines" in told
    assert "single, layers desk 0-21" in told
    assert "slow-1 stays out: with it a token takes" in told
    split = planned(capsys, *words, "--kv-tokens", "40000", "--objective", "throughput")
    assert split["plan"]["kind"] == "split"  # type: ignore[index]
    small = planned(capsys, *words, "--weights", "int4")
    assert small["model"]["layer_nbytes"] < split["model"]["layer_nbytes"] / 3  # type: ignore[index]


def test_pins_and_the_exit_status_of_the_impossible(fleet: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plan", "tinyllama-1.1b", "--nodes", fleet, "--pin", "desk=12,slow-2=10"]) == 0
    told = capsys.readouterr().out
    assert "pinned by hand" in told and "the planner's own choice would do" in told
    assert run(["plan", "tinyllama-1.1b", "--nodes", fleet, "--kv-tokens", "1000000"]) == 1
    assert "add a machine, serve in int8 or int4, or promise fewer tokens" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["tinylama-1.1b"], "is no preset, no job"),
        (["tinyllama-1.1b", "--weights", "int9"], "did you mean 'int8'"),
        (["tinyllama-1.1b", "--pin", "dek=22"], "did you mean 'desk'"),
        (["tinyllama-1.1b", "--objective", "speed"], "latency"),
        (["."], "is no preset, no job, no directory with a config.json"),
    ],
)
def test_mistakes_get_one_sentence(
    words: list[str],
    says: str,
    fleet: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MEDLEY_HOME", str(tmp_path / "home"))
    assert run(["plan", *words, "--nodes", fleet]) == 2
    told = capsys.readouterr().err
    assert says in told and told.count("\n") == 1


def test_this_machine_is_measured_with_a_real_layer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = saved(tiny("opt"), tmp_path / "model")
    made = planned(capsys, str(directory), "--weights", "fp32", "--kv-tokens", "512")["plan"]
    assert made["kind"] == "single"  # type: ignore[index]
    assert made["layout"]["replicas"][0][0]["machine"] == "this machine"  # type: ignore[index]
    assert made["prediction"]["stream_tokens_per_s"] > 0  # type: ignore[index]
