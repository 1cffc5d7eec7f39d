"""The page of a real coordinator, served as its process serves it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from tests.dashboard.sample import serving
from tests.serving.conftest import serving as listening

from medley.dashboard.pool import _state, serve_page
from medley.dashboard.served import UNREADABLE
from medley.jobs.operator import Operator
from medley.protocol.codec import text
from medley.protocol.events import Cancel, Submit
from medley.protocol.hosting import BeginServing, ServingSpec
from medley.protocol.messages import Address
from medley.protocol.spec import JobSpec
from medley.runtimes.coordinator import CoordinatorHost, CoordinatorOptions

PATHS = ("/", "/api/snapshot", "/metrics")


async def statuses(directory: Path, headers: dict[str, str]) -> list[int]:
    host = CoordinatorHost(CoordinatorOptions(directory, http_port=0))
    async with serve_page(host, Operator(host)) as address, httpx.AsyncClient(headers=headers) as browser:
        return [(await browser.get(address + path)).status_code for path in PATHS]


def test_on_this_machine_page_and_metrics_want_no_key(tmp_path: Path) -> None:
    assert asyncio.run(statuses(tmp_path, {})) == [200, 200, 200]


@pytest.mark.parametrize("name", ["evil.example", ""])
def test_another_name_than_this_machine_is_refused(tmp_path: Path, name: str) -> None:
    assert asyncio.run(statuses(tmp_path, {"host": name})) == [421, 421, 421]


async def metrics_with_a_job(directory: Path) -> tuple[str, str]:
    host = CoordinatorHost(CoordinatorOptions(directory, http_port=0))
    async with serve_page(host, Operator(host)) as address, httpx.AsyncClient() as browser:
        host.role.handle(Submit("a-012345", text(JobSpec(name="a")), 1), host.clock.now_ns())
        before = (await browser.get(address + "/metrics")).text
        host.role.handle(Cancel("a-012345", 2), host.clock.now_ns())
        return before, (await browser.get(address + "/metrics")).text


def test_gauges_are_of_the_pool_as_it_is(tmp_path: Path) -> None:
    before, after = asyncio.run(metrics_with_a_job(tmp_path))
    for name in ("leases_open", "workers", "shards"):
        assert f'medley_{name}{{job="a-012345"}} 0.0' in before
        assert f"medley_{name}{{" not in after


PIECES = ("it ", "answers")


@pytest.fixture(scope="module")
def front() -> Iterator[str]:
    """The API of a model that says the same to everybody."""

    async def chat(request: Request) -> Response:
        assert (await request.json())["model"] == "large"
        events = [{"choices": [{"delta": {"content": piece}}]} for piece in PIECES]
        lines = [*(f"data: {json.dumps(event)}" for event in events), "data: [DONE]"]
        return Response("\n\n".join(lines) + "\n\n", media_type="text/event-stream")

    with listening(Starlette(routes=[Route("/v1/chat/completions", chat, methods=["POST"])])) as url:
        yield f"{url}/v1"


async def page_of(directory: Path, note: Any) -> tuple[dict[str, Any], str]:
    """What the page shows of one serving with this note, and what it answers as `large`."""
    host = CoordinatorHost(CoordinatorOptions(directory, http_port=0))
    operator = Operator(host)
    async with serve_page(host, operator) as address, httpx.AsyncClient() as browser:
        begin = BeginServing("large-1", Address("tcp://127.0.0.1:7080", ""), ServingSpec("large"), 1)
        host.role.handle(begin, host.clock.now_ns())
        if note is not None:
            await operator.ask("serve_note", json.dumps({"job": "large-1", "note": note}).encode(), "operator")
        snapshot = (await browser.get(address + "/api/snapshot")).json()
        question = {"model": "large", "messages": [{"role": "user", "content": "well?"}]}
        answer = (await browser.post(address + "/api/ask", json=question)).text
    return snapshot, answer


def test_a_served_model_answers_on_the_page(tmp_path: Path, front: str) -> None:
    note = serving()["note"] | {"offer": {"url": front, "keyed": False, "source": ""}}
    snapshot, answer = asyncio.run(page_of(tmp_path, note))
    assert snapshot["models"] == ["large"]
    assert snapshot["servings"][0]["pipelines"][0]["stages"][0]["machine"] == "desktop-1"
    assert [json.loads(line[6:]) for line in answer.splitlines() if line] == [
        *({"text": piece} for piece in PIECES),
        {"done": True},
    ]


@pytest.mark.parametrize(
    "offer",
    [
        {"url": "http://127.0.0.1:1/v1", "keyed": True},
        {"url": "http://192.168.1.20:8080/v1", "keyed": False},
        {"url": "file:///etc/passwd", "keyed": False},
        "nonsense",
    ],
    ids=["key", "elsewhere", "no http", "no offer"],
)
def test_whom_not_everybody_here_may_ask_the_page_does_not_ask(tmp_path: Path, offer: Any) -> None:
    snapshot, answer = asyncio.run(page_of(tmp_path, serving()["note"] | {"offer": offer}))
    assert snapshot["models"] == []
    assert "there is no trained model 'large' yet" in answer


def test_a_note_of_another_version_breaks_nothing(tmp_path: Path) -> None:
    note = serving()["note"] | {"pipelines": [{"shape": "unknown"}]}
    shown = asyncio.run(page_of(tmp_path, note))[0]["servings"][0]
    assert (shown["reason"], shown["pipelines"]) == (UNREADABLE, [])


def test_a_serving_that_just_began_is_shown_as_waiting(tmp_path: Path) -> None:
    shown = asyncio.run(page_of(tmp_path, None))[0]["servings"][0]
    assert (shown["name"], shown["state"], shown["pipelines"]) == ("large", "waiting", [])


@pytest.mark.parametrize(
    ("facts", "state"),
    [
        ({"connected": False}, "lost"),
        ({"leases": 1, "serves": ["large-1"]}, "working"),
        ({"serves": ["large-1"]}, "serving"),
        ({}, "idle"),
    ],
    ids=["away", "trains too", "serves", "nothing"],
)
def test_a_machine_that_serves_is_at_work(facts: dict[str, Any], state: str) -> None:
    assert _state({"connected": True, "leases": 0, "shards": [], "serves": [], **facts}) == state
