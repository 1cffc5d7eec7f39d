"""One cause runs from a coordinator's message through an engine's work to what the node then reports."""

from __future__ import annotations

import pytest

from medley.protocol import engine as e
from medley.protocol.messages import Span
from medley.runtimes import causes
from medley.runtimes.causes import Causes


def test_a_report_has_the_cause_of_the_command_that_it_answers() -> None:
    known = Causes()
    known.given(e.Compute("u1", Span(0, 0, 8), 1, 3, 0.1, False), "coordinator.1.7")
    known.given(e.Compute("u2", Span(0, 8, 16), 1, 3, 0.1, False), "coordinator.1.9")
    known.given(e.Pull(1, 3), "coordinator.1.8")
    known.given(e.LoadShard(1, 3), "coordinator.1.5")
    assert known.of(e.Failed("compute", "u1", "no", False, False)) == "coordinator.1.7"
    assert known.of(e.Failed("compute", "u2", "no", False, False)) == "coordinator.1.9"
    assert known.of(e.Pulled(1, 3, 10)) == "coordinator.1.8"
    assert known.of(e.Loaded(1, 3)) == "coordinator.1.5"
    assert known.of(e.Failed("load", "3", "no", False, False)) == "coordinator.1.5"
    assert known.of(e.Pulled(1, 4, 10)) == ""
    assert known.of(e.Progress(1)) == ""


def test_causes_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(causes, "CAUSES_MAX", 3)
    known = Causes()
    for version in range(5):
        known.given(e.Pull(1, version), f"c{version}")
    assert [known.of(e.Pulled(1, v, 1)) for v in range(5)] == ["", "", "c2", "c3", "c4"]
