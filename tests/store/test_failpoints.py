"""Failpoints fire once, in the process that was meant, and list what was reached."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import sys
from medley.observe import failpoints
failpoints.describe_process(node="w1", role="worker")
for number in range(5):
    print(number, flush=True)
    failpoints.hit("a.before.B")
    failpoints.hit("c")
"""


def run(directory: Path | None) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != "MEDLEY_FAILPOINTS"}
    if directory is not None:
        environment["MEDLEY_FAILPOINTS"] = str(directory)
    command = [sys.executable, "-c", SCRIPT]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


def fired(directory: Path) -> list[str]:
    return sorted(file.name.rpartition(".fired.")[0] for file in directory.glob("*.fired.*"))


def test_nothing_happens_without_a_directory_or_an_order(tmp_path: Path) -> None:
    assert run(None).returncode == 0
    assert run(tmp_path).returncode == 0
    (seen,) = tmp_path.glob("seen.*")
    assert seen.read_text().split() == ["a.before.B", "c"]


def test_an_armed_failpoint_kills_one_process_once(tmp_path: Path) -> None:
    (tmp_path / "c").touch()
    first = run(tmp_path)
    assert (first.returncode, first.stdout.split()) == (-signal.SIGKILL, ["0"])
    assert fired(tmp_path) == ["c"]
    assert run(tmp_path).returncode == 0


def test_an_order_can_let_hits_pass_and_name_a_process(tmp_path: Path) -> None:
    (tmp_path / "a.before.B").write_text("3 node=w1 role=worker\n")
    (tmp_path / "c").write_text("node=w2")
    done = run(tmp_path)
    assert (done.returncode, done.stdout.split()) == (-signal.SIGKILL, ["0", "1", "2", "3"])
    assert fired(tmp_path) == ["a.before.B"]
    assert (tmp_path / "c").exists()


def test_an_order_can_be_a_full_disk(tmp_path: Path) -> None:
    (tmp_path / "c").write_text("full 2")
    told = run(tmp_path)
    assert told.returncode == 1 and "No space left" in told.stderr
    assert told.stdout.split() == ["0", "1", "2"]
    assert fired(tmp_path) == ["c"]
