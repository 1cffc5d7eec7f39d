"""The engine's thread: bounded, fair, and nobody's failure is another's."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import httpx
import pytest

from medley.engines.generate import Generator
from medley.engines.sampling import Sampling
from medley.engines.wording import Piece, Request
from medley.protocol.errors import UserError
from medley.serving.api import make_app
from medley.serving.engine import Broken, Engine, Overloaded, Stopping, Ticket


class Scripted:
    """A model whose answers are written by the test: prompts (n,) yield n pieces, (0,) fails, (-1,) waits."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.entered = threading.Event()
        self.order: list[int] = []

    def stream(self, request: Request) -> Iterator[Piece]:
        wanted = request.prompt[0]
        if wanted == 0:
            raise ZeroDivisionError("a bug in the model")
        if wanted == -2:
            raise UserError("not finite")
        if wanted == -1:
            self.entered.set()
            self.gate.wait(20)
            wanted = 1
        for i in range(1, wanted + 1):
            self.order.append(wanted)
            yield Piece(f"{i} ", generated=i, finish="stop" if i == wanted else "")


def asked(count: int) -> Request:
    return Request((count,), Sampling())


async def hold(engine: Engine, model: Scripted) -> Ticket:
    """A request that keeps the engine's thread busy until the gate opens."""
    ticket = engine.submit([asked(-1)])
    assert await asyncio.to_thread(model.entered.wait, 20)
    return ticket


async def text_of(ticket: Ticket) -> str:
    return "".join([piece.text async for _, piece in ticket])


@pytest.fixture
def model() -> Scripted:
    return Scripted()


@pytest.fixture
def engine(model: Scripted) -> Iterator[Engine]:
    one = Engine(model, waiting_max=2, active_max=2)
    one.start()
    yield one
    model.gate.set()
    one.close()


async def test_short_answers_do_not_wait_for_long_ones(engine: Engine, model: Scripted) -> None:
    held = await hold(engine, model)
    long, short = engine.submit([asked(50)]), engine.submit([asked(2)])
    model.gate.set()
    assert await text_of(short) == "1 2 "
    assert len((await text_of(long)).split()) == 50
    assert await text_of(held) == "1 "
    assert model.order.index(2) < len(model.order) - 10


async def test_failure_ends_its_own_request_only(engine: Engine) -> None:
    bad, known, good = engine.submit([asked(0)]), engine.submit([asked(-2)]), None
    with pytest.raises(Broken):
        await text_of(bad)
    with pytest.raises(UserError, match="not finite"):
        await text_of(known)
    good = engine.submit([asked(3)])
    assert await text_of(good) == "1 2 3 "


async def test_full_queue_refuses(engine: Engine, model: Scripted) -> None:
    held = await hold(engine, model)
    waiting = []
    with pytest.raises(Overloaded):
        while True:
            waiting.append(engine.submit([asked(1)]))
    assert len(waiting) == 2
    model.gate.set()
    assert [await text_of(t) for t in (held, *waiting)] == ["1 "] * (1 + len(waiting))


async def test_closing_tells_those_who_wait(model: Scripted) -> None:
    engine = Engine(model, active_max=1)
    engine.start()
    held, waiting = await hold(engine, model), engine.submit([asked(1)])
    closing = threading.Thread(target=engine.close)
    closing.start()
    model.gate.set()
    closing.join()
    for ticket in (held, waiting):
        try:
            await text_of(ticket)
        except Stopping:
            continue
    with pytest.raises(Stopping):
        engine.submit([asked(1)])


async def test_overload_is_503_in_openai_shape(generator: Generator, model: Scripted) -> None:
    engine = Engine(model, waiting_max=1, active_max=1)
    engine.start()
    app = make_app(generator, "tiny", engine)
    await hold(engine, model)
    with pytest.raises(Overloaded):
        while True:
            engine.submit([asked(1)])
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
        answer = await client.post("/v1/completions", json={"model": "tiny", "prompt": "Hi"})
    assert answer.status_code == 503 and answer.headers["retry-after"] == "1"
    assert answer.json()["error"]["code"] == "overloaded"
    model.gate.set()
    engine.close()


async def test_failure_before_and_during_a_stream(generator: Generator) -> None:
    class Failing:
        def stream(self, request: Request) -> Iterator[Piece]:
            yield Piece("a", generated=1)
            raise UserError("the numbers are not finite")

    engine = Engine(Failing())
    engine.start()
    app = make_app(generator, "tiny", engine)
    body = {"model": "tiny", "prompt": "Hi"}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
        whole = await client.post("/v1/completions", json=body)
        streamed = await client.post("/v1/completions", json=body | {"stream": True})
    assert whole.status_code == 500 and whole.json()["error"]["type"] == "server_error"
    assert "not finite" in streamed.text.split("\n\n")[-2] and "[DONE]" not in streamed.text
    engine.close()
