"""The routes of the page: one static document, the snapshot, the stream of changes, and a question to a
model.

Mount them behind `medley.serving.guard.Guard(app, key, hosts, open_paths=OPEN_PATHS)`: the static files
carry no data and are open, so that a browser can ask a person for the key; everything under /api needs it.
The content security policy allows this origin's own files and nothing else, and the scripts write text only.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from medley.dashboard.feed import Events, Feed
from medley.protocol.errors import MedleyError, Unavailable
from medley.serving.bodies import read_json
from medley.serving.guard import same_origin

STATIC = Path(__file__).parent / "static"
FILES = {
    "/": ("page.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
    "/chart.js": ("chart.js", "text/javascript"),
    "/chat.js": ("chat.js", "text/javascript"),
    "/served.js": ("served.js", "text/javascript"),
    "/stream.js": ("stream.js", "text/javascript"),
    "/favicon.svg": ("favicon.svg", "image/svg+xml"),
}
OPEN_PATHS = frozenset(FILES)
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
}
FRESH = HEADERS | {"cache-control": "no-store", "x-accel-buffering": "no"}
HEARTBEAT_S = 15.0
ASK_NBYTES_MAX = 64 << 10
ASK_MESSAGES_MAX = 64
ASKS_MAX = 8
BODY_TIMEOUT_S = 10.0


def make_routes(feed: Feed) -> list[Route]:
    """The page and its interface over a feed."""
    page = Page(feed)
    return [
        *(Route(path, _static(*file)) for path, file in FILES.items()),
        Route("/api/snapshot", page.snapshot),
        Route("/api/events", page.events),
        Route("/api/ask", page.ask, methods=["POST"]),
    ]


class Page:
    """The endpoints that carry data."""

    def __init__(self, feed: Feed) -> None:
        self.feed = feed
        self.asking = 0

    async def snapshot(self, request: Request) -> Response:
        return JSONResponse(self.feed.snapshot(), headers=FRESH)

    async def events(self, request: Request) -> Response:
        """Server-sent events: the snapshot first, then what changes."""
        try:
            events = self.feed.events()
        except Unavailable as error:
            return _refusal(503, str(error))
        return _stream(_changes(self.feed, events))

    async def ask(self, request: Request) -> Response:
        """A conversation {model, messages}; the answer as server-sent events {text}, {error}, {done}."""
        headers = {name.lower(): value for name, value in request.headers.items()}
        if not same_origin(headers):
            return _refusal(403, "a page of another origin may not ask here")
        try:
            model, messages = _question(await _body(request))
        except ValueError as error:
            return _refusal(400, str(error))
        if self.asking >= ASKS_MAX:
            return _refusal(503, f"{ASKS_MAX} questions are being answered already: try again in a moment")
        return _stream(self._answer(model, messages))

    async def _answer(self, model: str, messages: Sequence[Mapping[str, str]]) -> AsyncIterator[str]:
        self.asking += 1
        try:
            async for text in self.feed.ask(model, messages):
                yield _event({"text": text})
            yield _event({"done": True})
        except MedleyError as error:
            yield _event({"error": str(error)})
        finally:
            self.asking -= 1


async def _changes(feed: Feed, events: Events) -> AsyncIterator[str]:
    with contextlib.closing(events):
        yield _event({"kind": "snapshot", "snapshot": feed.snapshot()})
        while True:
            try:
                async with asyncio.timeout(HEARTBEAT_S):
                    event = await anext(events)
            except TimeoutError:
                yield ": still here\n\n"
            except StopAsyncIteration:
                return
            else:
                resync = event.get("kind") == "resync"
                yield _event({"kind": "snapshot", "snapshot": feed.snapshot()} if resync else event)


async def _body(request: Request) -> Any:
    """The JSON of a small body. Raises ValueError with a sentence."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise ValueError("the body must be JSON: Content-Type: application/json")
    content = bytearray()
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            async for chunk in request.stream():
                content += chunk
                if len(content) > ASK_NBYTES_MAX:
                    raise ValueError(f"a conversation has at most {ASK_NBYTES_MAX} bytes")
    except TimeoutError:
        raise ValueError(f"the body did not arrive within {BODY_TIMEOUT_S:g} s") from None
    return read_json(bytes(content))


def _question(body: Any) -> tuple[str, list[dict[str, str]]]:
    """Model and messages. Raises ValueError with a sentence."""
    if not isinstance(body, dict) or not isinstance(body.get("model"), str) or not body["model"]:
        raise ValueError("'model' must be the name of a model")
    messages = body.get("messages")
    if not isinstance(messages, list) or not 0 < len(messages) <= ASK_MESSAGES_MAX:
        raise ValueError(f"'messages' must be a list of 1 to {ASK_MESSAGES_MAX} messages")
    return body["model"], [_message(m) for m in messages]


def _message(message: Any) -> dict[str, str]:
    match message:
        case {"role": "user" | "assistant" as role, "content": str(content)}:
            return {"role": role, "content": content}
    raise ValueError("a message has a role, user or assistant, and a content that is text")


def _static(name: str, media_type: str) -> Any:
    content = (STATIC / name).read_bytes()

    async def file(request: Request) -> Response:
        return Response(content, media_type=media_type, headers=HEADERS | {"cache-control": "no-cache"})

    return file


def _event(event: Mapping[str, Any]) -> str:
    return f"data: {json.dumps(event, ensure_ascii=False)}\n\n"


def _stream(content: AsyncIterator[str]) -> Response:
    return StreamingResponse(content, media_type="text/event-stream", headers=FRESH)


def _refusal(status: int, message: str) -> Response:
    return JSONResponse({"error": message}, status, headers=FRESH)
