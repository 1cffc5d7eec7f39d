"""A child that hangs is ended, whatever it is; its parent hears of a death like any other."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from medley.protocol.engine import EngineExited, Opened, OpenVault, Progress, Report
from medley.runtimes.process import EngineProcess, Patience


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="a process can be stopped only on POSIX systems")
def test_a_stopped_engine_is_ended_and_says_so(tmp_path: Path) -> None:
    heard: list[Report] = []

    def hear(report: Report) -> None:
        heard.append(report)
        if isinstance(report, Opened):
            os.kill(child.pid, signal.SIGSTOP)

    child = EngineProcess("vault", hear, patience=Patience(look_s=0.1, silent_s=3.0))
    child.say(OpenVault(str(tmp_path), "127.0.0.1", 0, False))
    asyncio.run(asyncio.wait_for(child.run(), 60))
    assert any(isinstance(report, Progress) for report in heard), "also a vault says that it is alive"
    last = heard[-1]
    assert isinstance(last, EngineExited)
    assert "said nothing" in last.reason
    assert not last.memory


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="signals tell how a process died only on POSIX systems")
def test_how_an_engine_died_is_not_lost(tmp_path: Path) -> None:
    """Also where its pipe ends before anybody has waited for it: to kill a dead child takes its status away."""
    heard: list[Report] = []

    def hear(report: Report) -> None:
        heard.append(report)
        if isinstance(report, Opened):
            os.kill(child.pid, signal.SIGKILL)

    child = EngineProcess("vault", hear)
    child.say(OpenVault(str(tmp_path), "127.0.0.1", 0, False))
    asyncio.run(asyncio.wait_for(child.run(), 60))
    assert heard[-1] == EngineExited("killed", False)
