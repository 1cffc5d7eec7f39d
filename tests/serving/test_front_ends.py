"""A front that ends by itself: whoever asked hears of it, and nobody is let in while it says goodbye."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any, Self

import pytest
from tests.serving.conftest import byte_tokenizer, tiny_llama
from tests.waiting import until

from medley.engines.sampling import Sampling
from medley.engines.wording import Request, worded
from medley.policies.pipeline.describe import Link, Links, ModelShape, Wanted
from medley.protocol.errors import UserError
from medley.protocol.messages import Address
from medley.roles.front.front import Front
from medley.roles.front.planning import FrontOptions
from medley.serving.engine import Stopping
from medley.serving.front_host import Place
from medley.serving.pipelined import Pipelined


class Desk:
    """A coordinator that refuses news once it is told to, and answers nothing to a goodbye."""

    def __init__(self) -> None:
        self.refuses, self.over = threading.Event(), threading.Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    def ask(self, question: str, body: dict[str, Any], timeout_s: float = 0) -> dict[str, Any]:
        match question:
            case "serve_begin":
                return {"job": "tiny-1"}
            case "serve_news":
                self.refuses.wait(20)
                raise UserError("this operator may ask nothing more")
            case "serve_end":
                self.over.wait(20)
        return {}


@pytest.fixture
def desk() -> Iterator[Desk]:
    made = Desk()
    yield made
    made.refuses.set()
    made.over.set()


async def test_nobody_is_let_in_while_a_front_that_failed_says_goodbye(desk: Desk) -> None:
    def make(front: Address) -> Front:
        shape = ModelShape("tiny", 2, 1, 1, 1, 1, 1)
        return Front(FrontOptions("{}", shape, Wanted(), front, Links(Link(1e-4, 1e9))))

    model = tiny_llama()
    words = worded(model.config, None, byte_tokenizer(), "tiny")
    place = Place("tiny", "127.0.0.1", False, local=True)
    engine = Pipelined(words, place, make, None, lambda: desk)  # type: ignore[arg-type, return-value]
    engine.start()
    asked = [Request((1, 2, 3), Sampling(4))]
    ticket = engine.submit(asked)
    desk.refuses.set()
    with pytest.raises(Stopping):
        [piece async for piece in ticket]
    until(lambda: not engine.alive, what="the end of the front")
    with pytest.raises(Stopping):
        engine.submit(asked)
    desk.over.set()
    engine.close()
