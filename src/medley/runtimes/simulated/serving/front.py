"""The front's process: the role, its clients, and what the coordinator tells it of machines.

It has no faults of its own here: what it knows dies with it, and its clients' streams too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from medley.protocol.ids import NodeId
from medley.protocol.messages import Address
from medley.protocol.stages.events import (
    Asked,
    Emit,
    Explain,
    Fail,
    FrontEffect,
    FrontEvent,
    Gone,
    Guess,
    Heard,
    Post,
    Reject,
    Suspect,
    Tick,
)
from medley.protocol.stages.words import Draw, Word
from medley.roles.front.front import Front
from medley.roles.front.planning import FrontOptions
from medley.runtimes.simulated.kernel import MS
from medley.runtimes.simulated.serving.guesser import Guesser
from medley.runtimes.simulated.serving.setup import FRONT, Client, ServingSetup

if TYPE_CHECKING:
    from medley.runtimes.simulated.serving.world import ServingWorld

TICK_NS = 50 * MS


@dataclass(slots=True)
class Answer:
    """What a client has heard so far. `ended`: stop, length, left, or why not."""

    client: Client
    draws: list[Draw] = field(default_factory=list)
    times_ns: list[int] = field(default_factory=list)
    ended: str = ""

    @property
    def asked(self) -> Asked:
        return self.client.asked


class FrontProcess:
    def __init__(self, world: ServingWorld, setup: ServingSetup, address: Address) -> None:
        self.world, self.address = world, address
        self.role = Front(options_of(setup, address))
        self.guesser = Guesser(world.kernel, self.handle)
        self.answers: dict[int, Answer] = {}
        self.ended = 0  # of them

    def start(self) -> None:
        self.world.wires.listen(self.address, self.world.setup.front_at, self.arrive)
        self.world.kernel.after(TICK_NS, self._tick)

    def ask(self, client: Client) -> None:
        self.answers[client.asked.request] = Answer(client)
        self.handle(client.asked)
        if client.leaves_ns:
            self.world.kernel.after(client.leaves_ns, self.leave, client.asked.request)

    def leave(self, request: int) -> None:
        answer = self.answers[request]
        if not answer.ended:
            self.world.met("client leaves", self.world.phase_of(request))
            self._end(answer, "left")
            self.handle(Gone(request))

    def arrive(self, node: NodeId, word: Word, _body: Any) -> None:
        self.handle(Heard(node, word))  # type: ignore[arg-type]

    def handle(self, event: FrontEvent) -> None:
        effects = self.role.handle(event, self.world.kernel.now)
        self.world.handled(FRONT, event, effects)
        for effect in effects:
            self._do(effect)
        self.world.watch_front(event, effects)

    def _do(self, effect: FrontEffect) -> None:
        match effect:
            case Post(to, word, body):
                self.world.wires.post(self.address, self.world.setup.front_at, to, word, body)
            case Emit(request, draws, finish):
                self._emitted(request, draws, finish)
            case Fail(request, reason):
                self._end(self.answers[request], f"failed: {reason}")
            case Suspect(node, reason):
                self.world.suspected(node, reason)
            case Guess():
                self.guesser.guess(effect)
            case Explain() | Reject():
                self.world.remark(FRONT, effect)

    def _emitted(self, request: int, draws: Sequence[Draw], finish: str) -> None:
        answer = self.answers[request]
        answer.draws += draws
        answer.times_ns += [self.world.kernel.now] * len(draws)
        if finish:
            self._end(answer, finish)

    def _end(self, answer: Answer, how: str) -> None:
        if not answer.ended:
            answer.ended = how
            self.ended += 1

    def _tick(self) -> None:
        self.world.kernel.after(TICK_NS, self._tick)
        self.handle(Tick())


def options_of(setup: ServingSetup, address: Address) -> FrontOptions:
    return FrontOptions(
        "{}",
        setup.shape,
        setup.wanted,
        address,
        setup.links,
        setup.wire,
        setup.pins,
        setup.survive,
        setup.expected,
        setup.reach,
        setup.narrow,
        setup.guesses,
    )
