"""A person's task is found by name, only where their code is allowed, and each mistake is one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from medley.engines.task import load_task
from medley.protocol.errors import UserError

CODE = """
from medley.engines.task import Task
class Good(Task):
    def __init__(self, size=1): self.size = size
class Bad: pass
"""


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "their_task.py").write_text(CODE, encoding="utf-8")
    (tmp_path / "their_needs.py").write_text("import something_absent", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)


def test_options_arrive() -> None:
    assert load_task("their_task:Good", {"size": 3}, True).size == 3  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("path", "allow", "sentence"),
    [
        ("their_task:Good", False, "this machine runs none; join with --allow-code"),
        ("their_task", True, "is not of the form 'module:Class'"),
        ("nowhere:Good", True, "no module 'nowhere' is installed"),
        ("their_needs:Good", True, "needs the module 'something_absent'"),
        ("their_task:Missing", True, "has no class 'Missing'"),
        ("their_task:Bad", True, r"has no method model\(\)"),
    ],
)
def test_mistakes(path: str, allow: bool, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        load_task(path, {}, allow)


def test_options_that_do_not_fit_are_named() -> None:
    with pytest.raises(UserError, match="task_options"):
        load_task("their_task:Good", {"colour": 1}, True)
