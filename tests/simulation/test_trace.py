"""The story of a world as a file, and `medley replay`, which shows parts of it."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from click.testing import CliRunner
from tests.simulation.worlds import run

from medley.cli.replay import command
from medley.protocol.errors import UserError
from medley.runtimes.simulated.trace import read_trace


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("trace") / "seed-5.trace"
    world = run(5, trace=path)
    assert path.read_text().splitlines()[-1] == f"digest {world.digest()}"
    return path


def replay(*words: str) -> list[str]:
    outcome = CliRunner().invoke(command, list(words), catch_exceptions=False)
    assert outcome.exit_code == 0, outcome.output
    return outcome.stdout.splitlines()


def test_every_event_is_one_line_and_is_read_back_as_it_was_written(trace: Path) -> None:
    lines = list(read_trace(trace))
    assert [line.number for line in lines] == list(range(1, len(lines) + 1))
    assert all(a.time_ns <= b.time_ns for a, b in pairwise(lines))
    assert all(line.cause < line.number for line in lines)
    assert len({line.text.index("|") for line in lines}) == 1, "aligned"
    assert len(replay(str(trace))) == len(lines)


def test_a_digest_does_not_depend_on_whether_somebody_writes(trace: Path) -> None:
    assert trace.read_text().splitlines()[-1] == f"digest {run(5).digest()}"
    assert run(6).digest() != run(5).digest()


def test_filters(trace: Path) -> None:
    lines = list(read_trace(trace))
    some = [line for line in lines if line.kind == "Lease"]
    assert replay(str(trace), "--kind", "lease") == [line.text for line in some]
    late = replay(str(trace), "--from", "1", "--to", "1.5")
    assert late == [line.text for line in lines if 1e9 <= line.time_ns <= 1.5e9]
    assert all("n2" in text for text in replay(str(trace), "--node", "n2"))
    commits = replay(str(trace), "--grep", "Persist Committed")
    assert commits
    assert all(" coordinator " in text for text in commits)
    assert replay(str(trace), "--job", "nobody") == []


def test_the_chain_of_causes_leads_from_the_beginning_to_the_event(trace: Path) -> None:
    lines = list(read_trace(trace))
    event = next(line for line in lines if "Persist Committed" in line.effects)
    chain = replay(str(trace), "--cause", str(event.number))
    assert chain[-1] == event.text
    assert "UpdateReady" in "".join(chain) or "Staged" in "".join(chain)
    assert len(chain) > 5


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--grep", "("], "is not a regular expression"),
        (["--from", "3", "--to", "2"], "nothing lies between"),
        (["--cause", "99999999"], "has no event 99999999"),
        (["--from", "nan"], "--from nan is no time"),
        (["--to", "inf"], "--to inf is no time"),
    ],
)
def test_mistakes_are_sentences(trace: Path, words: list[str], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        CliRunner().invoke(command, [str(trace), *words], catch_exceptions=False)


def test_a_file_that_is_no_trace(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("hello\n")
    with pytest.raises(UserError, match="is not a trace"):
        list(read_trace(tmp_path / "a"))
    with pytest.raises(UserError, match="cannot be read"):
        list(read_trace(tmp_path / "b"))
    (tmp_path / "c").write_text("medley trace 1 seed 1\nsomething else\n")
    with pytest.raises(UserError, match="line 2 of"):
        list(read_trace(tmp_path / "c"))


def test_a_trace_that_was_cut_off_is_shown_as_far_as_it_goes(trace: Path, tmp_path: Path) -> None:
    whole = trace.read_text(encoding="utf-8")
    (tmp_path / "cut").write_text(whole[: len(whole) // 2], encoding="utf-8")
    told: list[str] = []
    lines = list(read_trace(tmp_path / "cut", told.append))
    assert lines == list(read_trace(trace))[: len(lines)] and len(lines) > 10
    assert told == [f"{tmp_path / 'cut'} ends before its digest: the file was cut off, or its run was"]
    assert not list(read_trace(trace, told.append))[:0] and len(told) == 1


def test_a_trace_in_which_an_event_is_its_own_cause_is_followed_no_further(trace: Path, tmp_path: Path) -> None:
    first, second = trace.read_text(encoding="utf-8").splitlines()[:2]
    event, *_ = read_trace(trace)
    number = event.number
    (tmp_path / "odd").write_text(f"{first}\n{second.replace('<0 ', f'<{number} ', 1)}\ndigest 0\n", encoding="utf-8")
    assert len(replay(str(tmp_path / "odd"), "--cause", str(number))) == 1
