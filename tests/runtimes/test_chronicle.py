"""What people read of a pool stays bounded: in memory, on disk, and in what one question costs."""

from __future__ import annotations

from pathlib import Path

import pytest

from medley.observe.metrics import Metrics
from medley.protocol.records import Committed
from medley.runtimes import chronicle
from medley.runtimes.chronicle import Chronicle


def commit(number: int) -> Committed:
    return Committed(number, (), 0.1, float(number), 1, 1, number)


def test_few_curves_are_in_memory_and_the_others_come_back_from_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chronicle, "CURVES_MAX", 2)
    kept = Chronicle(tmp_path, Metrics())
    for job in range(5):
        for number in (1, 2):
            kept.note(f"job/j{job}", commit(number), 0)
    assert len(kept._curves) == 2
    assert [p["version"] for p in kept.curve("j0", "commit")] == [1, 2]
    assert len(kept._curves) == 2


def test_the_newest_commits_cost_no_curve(tmp_path: Path) -> None:
    first = Chronicle(tmp_path, Metrics())
    for number in range(1, 31):
        first.note("job/j", commit(number), 0)
        assert len(first.recent_commits("j")) == min(number, 20)
    again = Chronicle(tmp_path, Metrics())
    for one in (first, again):
        assert [c["loss"] for c in one.recent_commits("j")] == [float(n) for n in range(11, 31)]
    assert again.recent_commits("never") == []
    assert not again._curves


def test_a_long_file_is_read_from_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Chronicle(tmp_path, Metrics())
    for number in range(1, 21):
        kept.note("job/j", commit(number), 0)
    monkeypatch.setattr(chronicle, "READ_NBYTES_MAX", 1000)
    found = [p["version"] for p in Chronicle(tmp_path, Metrics()).curve("j", "commit")]
    assert 1 < len(found) < 20
    assert found == list(range(21 - len(found), 21))


def test_decisions_on_disk_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chronicle, "DECISIONS_MAX", 5)
    monkeypatch.setattr(chronicle, "DECISIONS_NBYTES_MAX", 2000)
    kept = Chronicle(tmp_path, Metrics())
    for number in range(100):
        kept.explain("job", f"decision {number}", 0)
    assert (tmp_path / "decisions.jsonl").stat().st_size <= 2000
    again = [d["text"] for d in Chronicle(tmp_path, Metrics()).decisions()]
    assert again == [d["text"] for d in kept.decisions()]
    assert again[-1] == "decision 99"
