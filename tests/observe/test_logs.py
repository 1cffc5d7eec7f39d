"""Logs carry their fields, follow a cause, and never a secret."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from medley.observe import logs
from medley.protocol.errors import UserError


@pytest.fixture(autouse=True)
def _fresh_logging() -> Iterator[None]:
    yield
    logs.close()
    structlog.contextvars.clear_contextvars()
    structlog.reset_defaults()


def _read(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_line_has_the_common_fields(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "coordinator.jsonl"
    logs.configure("coordinator", path=path, stderr=False)
    logs.logger("ledger", role="coordinator", job="j1").info("lease granted", cause="m-17", first=0, end=64)
    [line] = _read(path)
    assert str(line.pop("at")).endswith("Z")
    assert line == {
        "process": "coordinator",
        "source": "ledger",
        "role": "coordinator",
        "job": "j1",
        "cause": "m-17",
        "event": "lease granted",
        "level": "info",
        "first": 0,
        "end": 64,
    }


def test_bound_fields_reach_every_logger(tmp_path: Path) -> None:
    path = tmp_path / "node.jsonl"
    logs.configure("node", path=path, stderr=False)
    logs.bind(node="n-3")
    logs.logger("a").info("x")
    logs.logger("b").warning("y")
    assert [line["node"] for line in _read(path)] == ["n-3", "n-3"]


@pytest.mark.parametrize("key", ["token", "join_token", "secret", "api_key", "KEY", "password", "secret_part"])
def test_secrets_never_reach_a_line(key: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "node.jsonl"
    logs.configure("node", path=path)
    logs.logger("join").info("redeemed", **{key: "hunter2"}, peer={"inner": [{key: "hunter2"}]})
    assert "hunter2" not in path.read_text(encoding="utf-8") + capsys.readouterr().err
    [line] = _read(path)
    assert line[key] == logs.REDACTED
    assert line["peer"] == {"inner": [{key: logs.REDACTED}]}


@pytest.mark.parametrize("key", ["tokens", "tokens_per_s", "answer_tokens", "placement_key", "public_key"])
def test_counts_of_tokens_are_no_secret(key: str) -> None:
    assert logs.redact(None, "info", {key: 12}) == {key: 12}


def test_levels_filter_and_unknown_levels_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "node.jsonl"
    logs.configure("node", "warning", path, stderr=False)
    logs.logger("x").info("quiet")
    logs.logger("x").error("loud")
    assert [line["event"] for line in _read(path)] == ["loud"]
    with pytest.raises(UserError, match="did you mean 'debug'"):
        logs.configure("node", "debugg")


def test_an_unwritable_file_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write the log file"):
        logs.configure("node", path=tmp_path / "file" / "node.jsonl")


def test_a_full_disk_costs_the_log_and_not_the_process(capsys: pytest.CaptureFixture[str]) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("no /dev/full here")
    logs.configure("node", path=full, stderr=False)
    logs.logger("x").info("first")
    logs.logger("x").info("second")
    shown = capsys.readouterr().err
    assert "/dev/full: No space left on device; logging goes on here" in shown
    assert "second" in shown


def test_a_person_reads_short_lines(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("demo")
    logs.logger("runtime", role="worker-2").info("died", signal="SIGKILL", why="as planned", loss=2.345678)
    line = capsys.readouterr().err
    assert line.rstrip("\n").endswith('info    worker-2     died  signal=SIGKILL why="as planned" loss=2.346')
    assert line.count("\n") == 1


def test_an_exception_is_told(tmp_path: Path) -> None:
    path = tmp_path / "node.jsonl"
    logs.configure("node", path=path, stderr=False)
    try:
        raise ZeroDivisionError("by zero")
    except ZeroDivisionError:
        logs.logger("x").exception("failed")
    assert "ZeroDivisionError: by zero" in str(_read(path)[0]["exception"])


def test_a_story_follows_a_cause_through_processes(tmp_path: Path) -> None:
    for process in ("worker", "shard"):
        logs.configure(process, path=tmp_path / f"{process}.jsonl", stderr=False)
        logs.logger(process).info("seen", cause="m-1")
        logs.logger(process).info("seen", cause="m-2")
    with (tmp_path / "shard.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"cut short by kill -9')
    told = list(logs.story([tmp_path / "shard.jsonl", tmp_path / "worker.jsonl"], "m-1"))
    assert [line["process"] for line in told] == ["worker", "shard"]
