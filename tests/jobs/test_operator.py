"""What an operator is told: all of a job's history, and what of a job the pool does in its own way."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest

from medley.jobs import operator as asked
from medley.jobs.operator import Operator
from medley.protocol.codec import text
from medley.protocol.events import Cancel, Submit
from medley.protocol.records import HeldoutMeasured
from medley.protocol.spec import JobSpec, Placement
from medley.runtimes.coordinator import CoordinatorHost, CoordinatorOptions

JOB = "a-012345"


@pytest.fixture
def host(tmp_path: Path) -> CoordinatorHost:
    host = CoordinatorHost(CoordinatorOptions(tmp_path))
    host.role.handle(Submit(JOB, text(JobSpec(name="a")), 1), host.clock.now_ns())
    return host


def ask(host: CoordinatorHost, method: str, **body: Any) -> dict[str, Any]:
    answer: dict[str, Any] = msgspec.json.decode(
        asyncio.run(Operator(host).ask(method, msgspec.json.encode(body), "me"))
    )
    return answer


def test_history_comes_in_pages_and_whole(host: CoordinatorHost, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asked, "HISTORY_PAGE", 3)
    for version in range(7):
        host.chronicle.note(f"job/{JOB}", HeldoutMeasured(version, 1.0, 10, 0.5, version), version)
    begin, seen = 0, []
    while begin is not None:
        page = ask(host, "history", job="a", begin=begin)
        assert len(page["entries"]) <= 3
        seen += [entry["version"] for entry in page["entries"] if entry["kind"] == "heldout"]
        begin = page["next"]
    assert seen == list(range(7))


async def followed(host: CoordinatorHost, events: int) -> list[dict[str, Any]]:
    heard = Operator(host).follow("events", msgspec.json.encode({"job": "a"}), "me")
    first = asyncio.ensure_future(anext(heard))
    await asyncio.sleep(0)  # until it listens
    for version in range(events):
        host.chronicle.note(f"job/{JOB}", HeldoutMeasured(version, 1.0, 10, 0.5, version), version)
    host.role.handle(Cancel(JOB, 2), host.clock.now_ns())
    said = [await first] + [line async for line in heard]
    return [msgspec.json.decode(line) for line in said]


def test_a_follower_that_is_too_slow_is_told_how_much_it_missed(
    host: CoordinatorHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asked, "FOLLOW_MAX", 4)
    heard = asyncio.run(followed(host, 10))
    assert [entry["kind"] for entry in heard] == [*["heldout"] * 4, "missed"]
    assert heard[-1]["count"] == 6


def test_a_job_that_wants_another_encryption_than_the_pools_is_told(host: CoordinatorHost) -> None:
    operator = Operator(host)
    assert operator._note(JobSpec()) == ""
    assert "this one encrypts every tensor" in operator._note(JobSpec(placement=Placement(encrypt=False)))
