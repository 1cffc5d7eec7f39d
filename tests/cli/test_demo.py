"""The demonstration's edges: a report that cannot be written, and Ctrl-C."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import psutil
import pytest
from tests.processes import running
from tests.waiting import until

from medley.cli.main import run


@pytest.mark.parametrize("place", ["", "nowhere/report.json"])
def test_a_report_that_cannot_be_written_is_refused_before_anything_starts(
    place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["demo", "--json", str(tmp_path / place)]) == 2
    assert capsys.readouterr().err.startswith("medley: --json: ")
    assert not (tmp_path / "runs").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="Ctrl-C is no signal there")
@pytest.mark.timeout(120)
def test_ctrl_c_is_one_line_and_leaves_no_process(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "medley", "demo", "--workers", "1", "--minutes", "5"]
    environment = {**os.environ, "MEDLEY_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    with running(command, complains=True, env=environment) as demo:
        assert demo.stdout is not None and demo.stderr is not None
        while "all processes are connected" not in (line := demo.stdout.readline()):
            assert line, demo.stderr.read()
        below = psutil.Process(demo.pid).children(recursive=True)
        assert len(below) >= 5
        demo.send_signal(signal.SIGINT)
        assert demo.wait(60) == 130
        assert demo.stderr.read().strip() == "medley: interrupted"
    until(lambda: not any(process.is_running() for process in below), what="the end of every process")
