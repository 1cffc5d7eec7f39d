"""The page over real HTTP: what it sends, what it refuses, and that it needs no torch."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.dashboard.conftest import Shown, shown
from tests.dashboard.sample import SampleFeed, node, sample
from tests.waiting import until

from medley.dashboard.feed import RESYNC, Broadcast
from medley.dashboard.routes import ASK_NBYTES_MAX, FILES, STATIC
from medley.protocol.errors import Unavailable

QUESTION = {"model": "demo", "messages": [{"role": "user", "content": "What is a fever?"}]}


@pytest.fixture
def http(page: Shown) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=page.url, timeout=20, trust_env=False) as one:
        yield one


def events(answer: httpx.Response) -> Iterator[dict[str, Any]]:
    return (json.loads(line[6:]) for line in answer.iter_lines() if line.startswith("data: "))


@pytest.mark.parametrize("path", FILES)
def test_files_come_with_a_strict_policy(http: httpx.Client, path: str) -> None:
    answer = http.get(path)
    assert answer.status_code == 200
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_files_write_text_only_and_load_nothing_from_elsewhere() -> None:
    for path in STATIC.iterdir():
        text = path.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\(|https?:", text), path


def test_snapshot_is_what_the_feed_says(http: httpx.Client) -> None:
    answer = http.get("/api/snapshot")
    assert answer.json() == sample()
    assert answer.headers["cache-control"] == "no-store"


def test_stream_begins_with_the_snapshot_and_follows(page: Shown, http: httpx.Client) -> None:
    change = {"kind": "node", "node": node("laptop-ben", ["worker"], "working", 900.0, "")}
    with http.stream("GET", "/api/events") as answer:
        told = events(answer)
        assert next(told) == {"kind": "snapshot", "snapshot": sample()}
        page.publish(change)
        assert next(told) == change
        page.publish(RESYNC)
        assert next(told)["kind"] == "snapshot"
    until(lambda: page.feed.broadcast.clients == 0, what="the browser's queue to be given back")


def test_too_many_browsers_are_told_so() -> None:
    with shown(SampleFeed(clients_max=1)) as page, httpx.Client(base_url=page.url, trust_env=False) as http:
        with http.stream("GET", "/api/events") as first:
            told = events(first)
            next(told)
            second = http.get("/api/events")
    assert second.status_code == 503 and "close one" in second.json()["error"]


def test_slow_browser_reads_the_snapshot_again() -> None:
    broadcast = Broadcast(queue_events_max=3)
    slow = broadcast.subscribe()
    for number in range(4):
        broadcast.publish({"kind": "job", "job": number})
    assert slow._queue.get_nowait() is RESYNC
    assert slow._queue.empty()


def test_queue_is_given_back_once() -> None:
    broadcast = Broadcast(clients_max=1)
    one = broadcast.subscribe()
    with pytest.raises(Unavailable):
        broadcast.subscribe()
    one.close()
    one.close()
    broadcast.subscribe()


def test_answer_comes_in_pieces(page: Shown, http: httpx.Client) -> None:
    with http.stream("POST", "/api/ask", json=QUESTION) as answer:
        told = list(events(answer))
    assert "".join(e.get("text", "") for e in told) == "What is a fever? "
    assert told[-1] == {"done": True}
    assert page.feed.asked == [("demo", QUESTION["messages"])]


def test_model_that_nobody_serves_is_one_sentence(http: httpx.Client) -> None:
    with http.stream("POST", "/api/ask", json=QUESTION | {"model": "other"}) as answer:
        assert list(events(answer)) == [{"error": "no machine serves 'other': medley serve other starts it"}]


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://elsewhere.example"},
        {"origin": "null"},
        {"sec-fetch-site": "cross-site"},
        {"host": "elsewhere.example"},
    ],
)
def test_question_from_another_page_is_refused(page: Shown, http: httpx.Client, headers: dict[str, str]) -> None:
    assert http.post("/api/ask", json=QUESTION, headers=headers).status_code in {403, 421}
    assert page.feed.asked == []


def test_question_of_the_page_itself_is_answered(page: Shown, http: httpx.Client) -> None:
    headers = {"origin": page.url, "sec-fetch-site": "same-origin"}
    assert http.post("/api/ask", json=QUESTION, headers=headers).status_code == 200


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"[]",
        b'{"model": "demo"}',
        b'{"model": "demo", "messages": []}',
        b'{"model": "demo", "messages": [{"role": "system", "content": "x"}]}',
        b'{"model": "demo", "messages": [{"role": "user", "content": 1}]}',
        b'"' + b"x" * ASK_NBYTES_MAX + b'"',
    ],
    ids=["syntax", "no object", "no messages", "empty", "role", "content", "too large"],
)
def test_bad_question_is_one_sentence(page: Shown, http: httpx.Client, body: bytes) -> None:
    answer = http.post("/api/ask", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400 and answer.json()["error"]
    assert http.post("/api/ask", content=b"{}", headers={"content-type": "text/plain"}).status_code == 400
    assert page.feed.asked == []


def test_key_guards_the_data_and_not_the_door() -> None:
    with shown(SampleFeed(), key="a-long-key") as page, httpx.Client(base_url=page.url, trust_env=False) as http:
        assert all(http.get(path).status_code == 200 for path in FILES)
        assert http.get("/api/snapshot").status_code == 401
        assert http.post("/api/ask", json=QUESTION).status_code == 401
        allowed = http.get("/api/snapshot", headers={"authorization": "Bearer a-long-key"})
    assert allowed.status_code == 200


def test_page_needs_neither_torch_nor_transformers() -> None:
    code = "import sys, medley.dashboard.routes; print({'torch', 'transformers', 'numpy'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "set()"


def test_example_of_the_documentation_is_the_sample(repository: Path) -> None:
    text = (repository / "docs" / "page.md").read_text(encoding="utf-8")
    example = json.loads(text.split("```json\n")[1].split("```")[0])
    whole = sample()
    assert example.keys() == whole.keys()
    for part in ("nodes", "jobs", "decisions", "servings"):
        assert all(item.keys() == whole[part][0].keys() for item in example[part]), part
    pipeline, drawn = (found["servings"][0]["pipelines"][0] for found in (example, whole))
    assert pipeline.keys() == drawn.keys() and pipeline["stages"][0].keys() == drawn["stages"][0].keys()
    assert next(iter(example["curves"].values())).keys() == next(iter(whole["curves"].values())).keys()
