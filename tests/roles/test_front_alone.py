"""The front role by itself, word by word: what stages should not say, and what a front owes to those that live on."""

from __future__ import annotations

from typing import Any

import pytest

from medley.policies.pipeline.describe import Link, Links, ModelShape, Wanted
from medley.protocol.messages import Address
from medley.protocol.stages.events import Asked, Explain, FrontEffect, FrontEvent, Heard, MachineDown, MachineUp, Post
from medley.protocol.stages.events import Tick as Ticked
from medley.protocol.stages.words import (
    NOWHERE,
    Alive,
    AskHeld,
    Draw,
    Drawn,
    Held,
    Load,
    Loaded,
    Measure,
    Measured,
    Pass,
    Probe,
    Replicate,
)
from medley.roles.front.front import Front
from medley.roles.front.pipeline import Pipeline
from medley.roles.front.planning import FrontOptions

SHAPE = ModelShape("toy", 6, 1 << 20, 1 << 20, 1 << 20, 64, 64)
S = 1_000_000_000
EVERY_NS = S // 20
SECONDS = (0.001, 0.002, 0.1)


def where(name: str, life: int = 1) -> Address:
    return Address(f"tcp://{name}:{life}", "")


class Script:
    """A front, and stages that say what they are asked, unless a test speaks for them."""

    def __init__(self, hosts: int = 3, pins: str = "n0=2,n1=2,n2=2", **options: Any) -> None:
        wanted = Wanted(kv_tokens=4096)
        links = Links(Link(1e-4, 1e9))
        self.front = Front(
            FrontOptions("{}", SHAPE, wanted, where("front"), links, pins=pins, expected=hosts, **options)
        )
        self.now_ns = S
        self.said: list[FrontEffect] = []
        for n in range(hosts):
            self.tell(MachineUp(f"n{n}", where(f"n{n}")))

    @property
    def pipeline(self) -> Pipeline:
        return self.front.pipelines[0]

    def tell(self, event: FrontEvent) -> list[FrontEffect]:
        out = self.front.handle(event, self.now_ns)
        self.said += out
        return out

    def hear(self, word: Any, node: str = "n0") -> list[FrontEffect]:
        return self.tell(Heard(node, word))

    def tick(self, seconds: float = EVERY_NS / S) -> list[FrontEffect]:
        self.now_ns += int(seconds * S)
        return self.tell(Ticked())

    def answered(self, effects: list[FrontEffect]) -> None:
        """Stages that hold nothing of anybody, and load in no time."""
        for effect in effects:
            match effect:
                case Post(to, Load(number, _, first, end)):
                    self.answered(self.hear(Loaded(number, first, end, 1, 0.1), node_at(to)))
                case Post(to, AskHeld(number, generation)):
                    self.answered(self.hear(Held(number, generation, ()), node_at(to)))
                case Post(to, Measure(number)):
                    self.answered(self.hear(Measured(number, SECONDS, SECONDS, 1 << 30), node_at(to)))

    def run(self, seconds: float) -> None:
        for _ in range(int(seconds * S) // EVERY_NS):
            self.answered(self.tick())

    def serve(self) -> Script:
        self.run(10)
        assert self.front.serving
        return self

    def ask(self, request: int = 1, tokens: int = 3) -> Pass:
        (word,) = passes(self.tell(Asked(request, tuple(range(1, tokens + 1)), 10, frozenset(), draft=False)))
        return word

    def heard(self, kind: type, to: str = "") -> list[Any]:
        """Words of this kind that were posted, to that machine."""
        posts = [e for e in self.said if isinstance(e, Post) and isinstance(e.word, kind)]
        return [post.word for post in posts if not to or node_at(post.to) == to]

    def explained(self) -> list[str]:
        return [effect.text for effect in self.said if isinstance(effect, Explain)]


def node_at(address: Address) -> str:
    return address.endpoint.removeprefix("tcp://").partition(":")[0]


def passes(effects: list[FrontEffect]) -> list[Pass]:
    return [e.word for e in effects if isinstance(e, Post) and isinstance(e.word, Pass)]


# -- what stages should not say --------------------------------------------------------------------------------------


def test_an_answer_for_a_hop_that_is_none_is_no_answer() -> None:
    script = Script().serve()
    script.ask()
    script.tick(31)
    (probe,) = script.heard(Probe)
    for place, busy_ns in ((0, 1), (1, 1), (2, 1), (99, 10**12), (-1, 10**12)):
        script.hear(Alive(probe.generation, probe.number, place, busy_ns))
    script.tick(10)
    assert not any("is gone" in text for text in script.explained())


@pytest.mark.parametrize(
    "draws",
    [
        (),
        (Draw(1, 3, 7, 0.0, ()), Draw(1, 4, 7, 0.0, ())),
        (Draw(2, 3, 7, 0.0, ()),),
        (Draw(1, 4, 7, 0.0, ()),),
    ],
    ids=["none", "one too many", "of another request", "for another position"],
)
def test_draws_that_do_not_fit_their_batch_are_not_taken(draws: tuple[Draw, ...]) -> None:
    script = Script().serve()
    word = script.ask()
    script.hear(Drawn(word.generation, word.batch, draws, (1, 1, 1)), "n2")
    assert script.pipeline.requests[1].generated == 0
    script.hear(Drawn(word.generation, word.batch, (Draw(1, 3, 7, 0.0, ()),), (1, 1, 1)), "n2")
    assert script.pipeline.requests[1].tokens[3:] == [7]


# -- what a front owes to those that live on -------------------------------------------------------------------------


def test_nobody_goes_on_copying_to_a_reserve_that_died() -> None:
    script = Script(5, survive=1).serve()
    script.run(5)
    part, buddy = next((key[1], who) for key, who in script.front.layouts.reserved.items() if who in ("n3", "n4"))
    script.said.clear()
    script.tell(MachineDown(buddy, "killed"))
    (stop,) = script.heard(Replicate, part.machine)
    assert (stop.first, stop.end, stop.node, stop.address) == (part.first, part.end, buddy, NOWHERE)
    for _ in range(200):
        script.tick()
    assert script.heard(Load)
    assert script.heard(Replicate, part.machine) == [stop]
    script.answered([effect for effect in script.said if isinstance(effect, Post)])
    (begun, *_) = [word for word in script.heard(Replicate, part.machine) if word.address.endpoint]
    assert begun.node != buddy
