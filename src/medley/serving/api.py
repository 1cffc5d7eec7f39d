"""The OpenAI API over one model: /v1/models, /v1/chat/completions, /v1/completions, /health.

Every error is JSON in OpenAI's shape. A bad request is refused before it reaches the engine; a client that
goes away frees its place. Authentication, host and body limits are `medley.serving.guard`'s; the reading of
bodies is `medley.serving.requests`'s.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from medley.concurrency import TaskGroup
from medley.engines.wording import Request as Continuation
from medley.protocol.errors import MedleyError, UserError
from medley.runtimes.clock import Clock, SystemClock
from medley.serving.bodies import read_json
from medley.serving.engine import Answering, Overloaded, Stopping, Ticket, Unanswered
from medley.serving.replies import Reply, new_reply
from medley.serving.requests import ApiError, Ask, read_chat, read_text

if TYPE_CHECKING:
    from medley.engines.wording import Wording

BODY_TIMEOUT_S = 30.0


class Api:
    """The endpoints of one served model."""

    def __init__(self, words: Wording, engine: Answering, name: str, clock: Clock) -> None:
        self.words = words
        self.engine = engine
        self.name = name
        self.clock = clock
        self.created = self._now_s()

    def _now_s(self) -> int:
        return self.clock.wall_ns() // 1_000_000_000

    async def health(self, request: Request) -> Response:
        alive = self.engine.alive
        return JSONResponse({"status": "ok" if alive else "stopping"}, 200 if alive else 503)

    async def models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._card()]})

    async def model(self, request: Request) -> Response:
        self._known(request.path_params["name"])
        return JSONResponse(self._card())

    async def chat(self, request: Request) -> Response:
        asked = read_chat(await _body(request))
        self._known(asked.ask.model)
        prompt = await asyncio.to_thread(self._fit, "messages", self.words.prompt_tokens, asked.messages)
        reply = new_reply("chat", self.name, self.words, asked.ask, len(prompt), self._now_s())
        return await self._answer(request, asked.ask, [prompt], reply, self.words.default_stops)

    async def text(self, request: Request) -> Response:
        asked = read_text(await _body(request))
        self._known(asked.ask.model)
        prompts = [await asyncio.to_thread(self._fit, "prompt", self._prompt, p) for p in asked.prompts]
        reply = new_reply("text", self.name, self.words, asked.ask, sum(map(len, prompts)), self._now_s())
        return await self._answer(request, asked.ask, prompts, reply, ())

    def _prompt(self, prompt: str | tuple[int, ...]) -> tuple[int, ...]:
        if isinstance(prompt, str):
            return self.words.text_tokens(prompt)
        return self.words.fitting(prompt)

    def _fit(self, param: str, tokens: Callable[[Any], tuple[int, ...]], given: Any) -> tuple[int, ...]:
        try:
            return tokens(given)
        except UserError as error:
            code = "context_length_exceeded" if "context" in str(error) else None
            raise ApiError(str(error), param, code) from error

    def _known(self, model: str) -> None:
        if model != self.name:
            message = f"the model '{model}' does not exist here; this server answers as '{self.name}'"
            raise ApiError(message, "model", "model_not_found", 404)

    def _card(self) -> dict[str, Any]:
        return {"id": self.name, "object": "model", "created": self.created, "owned_by": "medley"}

    async def _answer(
        self,
        request: Request,
        ask: Ask,
        prompts: Sequence[tuple[int, ...]],
        reply: Reply,
        stops: tuple[str, ...],
    ) -> Response:
        sampling = replace(ask.sampling, stop=ask.sampling.stop + stops)
        ticket = self.engine.submit(
            [Continuation(p, replace(sampling, choice=i)) for p in prompts for i in range(ask.n)]
        )
        if ask.stream:
            headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
            return StreamingResponse(_events(ticket, reply), media_type="text/event-stream", headers=headers)
        return await _whole(request, ticket, reply)


def make_app(words: Wording, name: str, engine: Answering, clock: Clock | None = None) -> Starlette:
    """The application of one model. It starts its engine when it starts and stops it when it stops."""
    api = Api(words, engine, name, clock or SystemClock())

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        engine.start()
        try:
            yield
        finally:
            await asyncio.to_thread(engine.close)

    return Starlette(
        routes=[
            Route("/health", api.health),
            Route("/v1/models", api.models),
            Route("/v1/models/{name:path}", api.model),
            Route("/v1/chat/completions", api.chat, methods=["POST"]),
            Route("/v1/completions", api.text, methods=["POST"]),
        ],
        lifespan=lifespan,
        exception_handlers={
            ApiError: _refused,
            HTTPException: _http,
            MedleyError: _refused,
            Exception: _refused,
        },
    )


async def _body(request: Request) -> Any:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError("the body must be JSON: Content-Type: application/json", status=415)
    try:
        return read_json(await asyncio.wait_for(request.body(), BODY_TIMEOUT_S))
    except TimeoutError:
        raise ApiError(f"the body did not arrive within {BODY_TIMEOUT_S:g} s", status=408) from None
    except ValueError as error:
        raise ApiError(str(error)) from error


async def _events(ticket: Ticket, reply: Reply) -> AsyncIterator[str]:
    """Server-sent events; an error after the first byte can only be one more event."""
    try:
        for event in reply.opening():
            yield _sse(event)
        async for choice, piece in ticket:
            yield _sse(reply.chunk(choice, piece))
        for event in reply.closing():
            yield _sse(event)
        yield "data: [DONE]\n\n"
    except MedleyError as error:
        yield _sse(_error(error)[1])
    finally:
        ticket.cancel()


async def _whole(request: Request, ticket: Ticket, reply: Reply) -> Response:
    """One body when all choices are finished; a client that disconnects before ends the work."""
    outcome: MedleyError | None = None
    async with TaskGroup() as group:
        watch = group.create_task(_leave(request, ticket))
        try:
            async for choice, piece in ticket:
                reply.chunk(choice, piece)
        except MedleyError as error:
            outcome = error
        finally:
            watch.cancel()
    return await _refused(request, outcome) if outcome else JSONResponse(reply.whole())


async def _leave(request: Request, ticket: Ticket) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    ticket.leave()


def _sse(event: dict[str, Any]) -> str:
    return f"data: {json.dumps(event, ensure_ascii=False)}\n\n"


def _error(error: Exception) -> tuple[int, dict[str, Any]]:
    """Status and body of what went wrong."""
    match error:
        case ApiError():
            return error.status, error.body
        case Overloaded() | Stopping():
            refused = ApiError(str(error), code="overloaded", status=503, type="server_error")
        case Unanswered():
            refused = ApiError(str(error), code="unavailable", status=503, type="server_error")
        case MedleyError():
            refused = ApiError(str(error), status=500, type="server_error")
        case _:
            refused = ApiError("the server failed on this request; its log says why", status=500, type="server_error")
    return refused.status, refused.body


async def _refused(request: Request, error: Exception) -> Response:
    status, body = _error(error)
    return JSONResponse(body, status, headers={"retry-after": "1"} if status == 503 else None)


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path}: {error.detail}"
    return JSONResponse(ApiError(message).body, error.status_code, headers=error.headers)
