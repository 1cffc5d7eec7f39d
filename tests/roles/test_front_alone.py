"""The front role by itself, word by word: what stages should not say, and what a front owes to those that live on."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medley.policies.pipeline.describe import Link, Links, ModelShape, Wanted
from medley.protocol.messages import Address
from medley.protocol.stages.events import (
    Asked,
    Explain,
    FrontEffect,
    FrontEvent,
    Gone,
    Heard,
    MachineDown,
    MachineUp,
    Post,
)
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
    Unload,
)
from medley.roles.front.front import Front
from medley.roles.front.pipeline import Pipeline
from medley.roles.front.planning import FrontOptions
from medley.roles.front.prefixes import common

SHAPE = ModelShape("toy", 6, 1 << 20, 1 << 20, 1 << 20, 64, 64)
S = 1_000_000_000
EVERY_NS = S // 20


def where(name: str, life: int = 1) -> Address:
    return Address(f"tcp://{name}:{life}", "")


class Script:
    """A front, and stages that say what they are asked, unless a test speaks for them."""

    def __init__(self, hosts: int = 3, pins: str = "n0=2,n1=2,n2=2", **options: Any) -> None:
        self.measured: dict[str, tuple[float, int]] = {}  # seconds of a layer, bytes of memory
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
                    seconds, nbytes = self.measured.get(node_at(to), (0.001, 1 << 30))
                    times = (seconds, 2 * seconds, 100 * seconds)
                    self.answered(self.hear(Measured(number, times, times, nbytes), node_at(to)))

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

    def asks(self, request: int, prompt: Iterable[int]) -> None:
        self.tell(Asked(request, tuple(prompt), 10, frozenset(), draft=False))

    def draws(self) -> None:
        """The oldest batch in flight comes back."""
        number, batch = next(iter(self.pipeline.flying.items()))
        rows = [flight.row for flight in batch.rows if flight.row.samples]
        draws = tuple(Draw(row.request, row.start + row.count, 5, 0.0, ()) for row in rows)
        self.hear(Drawn(self.pipeline.generation, number, draws, (1, 1, 1)), "n2")

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


def test_layers_that_were_loaded_for_a_change_that_was_given_up_are_known() -> None:
    script = Script()
    while not script.heard(Load):
        script.tick()
    loads = {to: word for to in ("n0", "n1", "n2") for word in script.heard(Load, to)}
    script.tell(MachineDown("n2", "killed"))
    for node in ("n0", "n1"):
        word = loads[node]
        script.hear(Loaded(word.number, word.first, word.end, 1, 0.1), node)
    known = script.front.layouts.machines.known
    assert {node: known[node].loaded for node in known} == {"n0": {0, 1}, "n1": {2, 3}, "n2": set()}


def test_a_machine_lets_go_of_old_layers_before_it_loads_those_of_a_new_plan() -> None:
    """Its memory was planned for the new ones only."""
    layers_nbytes = 4 * ((1 << 20) + 4096 * 64) + (1 << 20)
    memory_nbytes = int(((512 << 20) + layers_nbytes) / 0.8) + 1000
    script = Script(3, pins="")
    script.measured = {f"n{n}": (seconds, memory_nbytes) for n, seconds in enumerate((0.002, 0.001, 0.003))}
    script.serve()
    before = {hop.node: (hop.first, hop.end) for hop in script.pipeline.hops}
    assert before == {"n0": (0, 2), "n1": (2, 6)}
    script.said.clear()
    script.tell(MachineDown("n1", "killed"))
    script.run(2)
    assert {hop.node: (hop.first, hop.end) for hop in script.pipeline.hops} == {"n2": (0, 2), "n0": (2, 6)}
    posts = [e.word for e in script.said if isinstance(e, Post) and node_at(e.to) == "n0"]
    changes = [(type(word), word.first, word.end) for word in posts if isinstance(word, Load | Unload)]
    assert changes == [(Unload, 0, 2), (Load, 2, 6)]


def test_two_pipelines_that_wait_say_so_once_each() -> None:
    script = Script(3, "n0=3,n1=3/n2=6").serve()
    for node in ("n1", "n2"):
        script.tell(MachineDown(node, "killed"))
    script.said.clear()
    script.run(5)
    assert sorted(text for text in script.explained() if "waits" in text) == [
        "it waits for machines: nobody else holds layers 0 to 5",
        "it waits for machines: nobody else holds layers 3 to 5",
    ]


def test_a_request_never_begins_as_a_copy_of_itself() -> None:
    """Its donor left before it had its first row, for which there was no room beside the others'."""
    script = Script().serve()
    script.asks(1, range(1, 101))
    script.draws()
    script.draws()  # from here on it is known how many batches fill the hops
    script.asks(2, range(1000, 2900))
    script.asks(3, range(3000, 3600))
    script.asks(4, (*range(1, 101), 200, 201))
    script.draws()
    assert script.pipeline.requests[4].donor == 1
    script.tell(Gone(1))
    script.draws()
    (opening,) = [one for word in script.heard(Pass) for one in word.opens if one.request == 4]
    assert (opening.donor, opening.donor_tokens) == (0, 0)


@given(st.lists(st.integers(0, 1), max_size=40), st.lists(st.integers(0, 1), max_size=40), st.integers(0, 40))
def test_the_longest_common_beginning(one: list[int], other: list[int], most: int) -> None:
    most = min(most, len(one), len(other))
    same = next((place for place in range(most) if one[place] != other[place]), most)
    assert common(one, other, most) == same
