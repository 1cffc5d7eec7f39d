"""What the API says, and frees, where the machines behind it give no answer and where a client leaves at once."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import httpx
import pytest
from starlette.types import Message
from tests.serving.conftest import byte_tokenizer, tiny_llama

from medley.engines.wording import Request, Wording, worded
from medley.serving.api import make_app
from medley.serving.engine import Ticket, Unanswered

ASKED = {"model": "tiny", "prompt": "Hi", "max_tokens": 4}


class Silent:
    """Takes requests, and answers what it is told to, if anything."""

    def __init__(self, *events: Any) -> None:
        self.events, self.tickets = events, list[Ticket]()
        self.active, self.alive = 0, True

    def start(self) -> None: ...

    def close(self) -> None: ...

    def submit(self, requests: Sequence[Request]) -> Ticket:
        ticket = Ticket(requests)
        for event in self.events:
            ticket.deliver(event)
        self.tickets.append(ticket)
        return ticket


@pytest.fixture(scope="module")
def words() -> Wording:
    model = tiny_llama()
    return worded(model.config, None, byte_tokenizer(), "tiny")


async def test_machines_that_cannot_answer_are_no_fault_of_the_server(words: Wording) -> None:
    engine = Silent(Unanswered("the model is not served at present: no machine has come yet"))
    transport = httpx.ASGITransport(make_app(words, "tiny", engine))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
        answer = await http.post("/v1/completions", json=ASKED)
        stream = await http.post("/v1/completions", json={**ASKED, "stream": True})
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "1"
    assert answer.json()["error"]["type"] == "server_error"
    assert answer.json()["error"]["code"] == "unavailable"
    assert "no machine has come yet" in answer.json()["error"]["message"]
    assert "unavailable" in stream.text


async def test_a_client_that_is_gone_before_the_first_event_frees_its_place(words: Wording) -> None:
    engine = Silent()
    app = make_app(words, "tiny", engine)
    body = json.dumps({**ASKED, "stream": True}).encode()
    coming: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        return coming.pop(0) if coming else {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        pass

    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "POST",
        "path": "/v1/completions",
        "raw_path": b"/v1/completions",
        "query_string": b"",
        "root_path": "",
        "scheme": "http",
        "headers": [(b"content-type", b"application/json"), (b"host", b"localhost")],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 2),
        "state": {},
    }
    await app(scope, receive, send)
    assert [ticket.cancelled.is_set() for ticket in engine.tickets] == [True]
