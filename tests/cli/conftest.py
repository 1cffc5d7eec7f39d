"""A home of its own for each test, and a coordinator of canned answers for those that ask for one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.cli.canned import Canned, running

from medley.cli.main import run

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MEDLEY_HOME", str(tmp_path))
    monkeypatch.delenv("MEDLEY_TOKEN", raising=False)
    return tmp_path


@pytest.fixture
def canned(home: Path) -> Iterator[Canned]:
    with running(home / "coordinator") as coordinator:
        yield coordinator


@pytest.fixture
def cli(home: Path, capsys: pytest.CaptureFixture[str]) -> Cli:
    """Run a command as the shell would: (exit status, stdout, stderr)."""

    def runs(*words: str) -> tuple[int, str, str]:
        capsys.readouterr()
        status = run(list(words))
        shown = capsys.readouterr()
        return status, shown.out, shown.err

    return runs
