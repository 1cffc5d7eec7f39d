"""A prepared directory is the same bytes for the same job, and tells when it is damaged."""

from __future__ import annotations

from pathlib import Path

import pytest

from medley.data.corpus import load_checks, load_pairs
from medley.data.prepare import open_prepared, prepare
from medley.protocol.errors import Damaged, UserError
from medley.protocol.spec import Data


def test_builtin_holds_groups_out_but_none_that_a_check_asks_about(tmp_path: Path) -> None:
    made = prepare(Data(), 0, tmp_path / "data")
    trained, held = {e.group for e in made.train}, {e.group for e in made.heldout}
    focus = {pair.id: pair.focus.lower() for pair in load_pairs()}
    assert held and not trained & held
    assert not {focus[check.pair_id] for check in load_checks()} & held
    asked = {check.question for check in load_checks()}
    assert not asked & {e.question for e in made.train}
    assert [check.question for check in made.checks] == [check.question for check in load_checks()]
    assert {check.answer for check in made.checks} <= {e.answer for e in made.train}


def test_the_same_job_gives_the_same_bytes(tmp_path: Path) -> None:
    one, two = prepare(Data(), 0, tmp_path / "a"), prepare(Data(), 0, tmp_path / "b")
    other = prepare(Data(), 1, tmp_path / "c")
    assert one.digest == two.digest != other.digest
    assert open_prepared(tmp_path / "a") == one


def test_preparing_again_replaces(tmp_path: Path) -> None:
    prepare(Data(), 1, tmp_path / "a")
    assert prepare(Data(), 0, tmp_path / "a").digest == prepare(Data(), 0, tmp_path / "b").digest


def test_a_changed_byte_is_noticed(tmp_path: Path) -> None:
    prepare(Data(max_samples=50), 0, tmp_path / "a")
    path = tmp_path / "a" / "train.jsonl"
    path.write_bytes(path.read_bytes().replace(b"a", b"b", 1))
    with pytest.raises(Damaged, match="does not match its manifest"):
        open_prepared(tmp_path / "a")
    with pytest.raises(Damaged, match="not a prepared data directory"):
        open_prepared(tmp_path / "nowhere")


def test_nothing_left_to_train_on_is_said(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"question": "q", "answer": "a"}\n', encoding="utf-8")
    assert len(prepare(Data(source="jsonl", path=str(path)), 0, tmp_path / "a").train) == 1
    with pytest.raises(UserError, match="is no file"):
        prepare(Data(source="jsonl", path=str(path) + "x"), 0, tmp_path / "a")
