"""Where the coordinator of this person is, and the sentence when there is none."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from medley.jobs.home import Whereabouts, coordinator_dir, home, is_running, node_dir, operator, whereabouts
from medley.protocol.errors import UserError
from medley.runtimes.lock import Lock


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDLEY_HOME", str(tmp_path))


def leave(directory: Path, text: str) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "address.json").write_text(text)


def test_everything_is_below_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert home() == tmp_path
    assert coordinator_dir() == tmp_path / "coordinator"
    assert coordinator_dir("x") == Path("x")
    assert node_dir() == tmp_path / "node"
    monkeypatch.delenv("MEDLEY_HOME")
    assert home() == Path.home() / ".medley"


def test_a_running_coordinator_is_found() -> None:
    leave(
        coordinator_dir(),
        json.dumps({"control": "127.0.0.1:1", "door": "d", "http": "h", "pid": os.getpid(), "term": 3}),
    )
    assert whereabouts(coordinator_dir()) == Whereabouts("127.0.0.1:1", "d", "h", os.getpid())
    lock = Lock(coordinator_dir() / "lock", "taken")
    assert is_running(coordinator_dir())
    lock.release()
    assert not is_running(coordinator_dir())


def test_the_file_of_a_killed_one_does_not_count_though_its_number_is_in_use_again() -> None:
    leave(coordinator_dir(), json.dumps({"control": "127.0.0.1:1", "pid": os.getpid()}))
    assert not is_running(coordinator_dir())


def test_none_is_a_sentence(tmp_path: Path) -> None:
    assert not is_running(coordinator_dir())
    with pytest.raises(UserError) as caught:
        operator()
    assert str(caught.value) == (
        f"no coordinator is running here ({tmp_path}/coordinator/address.json is missing); "
        "start one with 'medley up', or pass --coordinator DIR"
    )


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": 3}', '{"control": 3}'])
def test_a_damaged_file_is_a_sentence(text: str) -> None:
    leave(coordinator_dir(), text)
    with pytest.raises(UserError, match="is damaged .*start the coordinator again"):
        operator()


def test_missing_credentials_are_a_sentence() -> None:
    leave(coordinator_dir(), '{"control": "127.0.0.1:1"}')
    with pytest.raises(UserError, match=r"operator\.pem cannot be read"):
        operator()
