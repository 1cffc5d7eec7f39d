"""`medley simulate --check`: what it prints, what it writes, and what its exit status says."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from medley.cli.main import run
from medley.cli.simulate import command
from medley.runtimes.simulated import check as simulated_check
from medley.runtimes.simulated.check import Findings, check, command_of
from medley.runtimes.simulated.coverage import Coverage
from medley.runtimes.simulated.seeds import Seed

SUMMARY = {"seeds", "violations", "uncovered", "digest", "seconds"}


def test_processes_share_seeds_and_the_digest_does_not_tell() -> None:
    told: list[int] = []
    alone = check(500, 4, 1, lambda seed, _: told.append(seed.seed))
    assert told == [500, 501, 502, 503]
    together = check(500, 4, 2, lambda seed, _: None)
    assert together.digest == alone.digest
    assert together.coverage == alone.coverage


def test_a_process_that_is_killed_costs_its_seeds_and_the_check_is_not_green(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    start = simulated_check._process

    def killed(first: int, step: int, count: int, kind: simulated_check.Kind) -> subprocess.Popen[bytes]:
        process = start(first, step, count, kind)
        if first == 501:
            process.kill()
        return process

    monkeypatch.setattr(simulated_check, "_process", killed)
    assert run(["simulate", "--check", "--seeds", "4", "--first-seed", "500", "--jobs", "2"]) == 1
    assert "not run, as their process ended: 2 seeds, the first of them 501" in capsys.readouterr().out


def test_json_ends_with_the_summary() -> None:
    result = CliRunner().invoke(command, ["--check", "--seeds", "2", "--first-seed", "7", "--jobs", "1", "--json", "-"])
    assert result.exit_code == 0, result.output
    last = json.loads(result.stdout.splitlines()[-1])
    assert set(last) >= SUMMARY
    assert (last["seeds"], last["violations"], last["uncovered"]) == (2, 0, 0)


def test_one_seed_leaves_its_story(tmp_path: Path) -> None:
    path = tmp_path / "seed.trace"
    result = CliRunner().invoke(command, ["--check", "--seeds", "1", "--first-seed", "7", "--trace", str(path)])
    assert result.exit_code == 0, result.output
    assert path.read_text().startswith("medley trace 1")


def test_a_violation_is_told_with_the_command_that_replays_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(seed: int, trace: Path | None = None, kind: str = "all") -> Seed:
        return Seed(seed, "d", 1.0, 10, {}, "T1", "the parameters are wrong", serving=kind == "serving")

    monkeypatch.setattr("medley.runtimes.simulated.check.run_seed", broken)
    result = CliRunner().invoke(command, ["--check", "--seeds", "1", "--first-seed", "9", "--jobs", "1"])
    assert result.exit_code == 1
    assert "seed 9 breaks T1" in result.output
    assert "medley simulate --check --seeds 1 --first-seed 9 --trace seed-9.trace" in result.output


def test_a_violation_of_a_serving_is_replayed_alone() -> None:
    found = Seed(4, "d", 1.0, 10, {}, "I1", "a token is wrong", serving=True)
    assert command_of(found) == "medley simulate --check --serving --seeds 1 --first-seed 4 --trace seed-4.trace"


def test_a_serving_leaves_its_story(tmp_path: Path) -> None:
    path = tmp_path / "seed.trace"
    words = ["--check", "--serving", "--seeds", "1", "--first-seed", "7", "--trace", str(path)]
    result = CliRunner().invoke(command, words)
    assert result.exit_code == 0, result.output
    assert path.read_text().startswith("medley trace 1 serving seed 7")


def test_a_pair_that_was_missed_counts_against_many_seeds_only() -> None:
    findings = Findings(0, 1000)
    findings.seeds = 999
    assert findings.uncovered() == []
    findings.seeds = 1000
    assert ("crash", "before persist Committed") in findings.uncovered()


def test_the_table_marks_what_was_missed() -> None:
    coverage = Coverage()
    coverage.add({("crash", "here"): 2})
    assert coverage.table([("crash", "here"), ("crash", "there")]) == ["crash  here 2, !there 0"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["simulate", "--check", "--trace", "x"], "--seeds 1"),
        (["simulate", "--check", "--seeds", "0"], "--seeds"),
        (["simulate", "--serving"], "--check"),
        (["simulate", "x.yaml", "--serving"], "--serving and --seeds belong to --check"),
        (["simulate", "x.yaml", "--seeds", "3"], "--serving and --seeds belong to --check"),
        (["simulate", "--check", "--json", "missing/x"], "its directory does not exist"),
        (["simulate", "--check", "--json", "."], "is a directory"),
        (["simulate", "--check", "--seeds", "1", "--trace", "missing/x"], "its directory does not exist"),
    ],
)
def test_mistakes_are_one_sentence(words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(words) == 2
    told = capsys.readouterr().err
    assert sentence in told and len(told.splitlines()) == 1
