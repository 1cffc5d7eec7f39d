"""A front with a draft model over a perfect network: every token that of an undisturbed run, whatever is guessed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from tests.roles.test_front import SHAPE, asked, right, said, setup

from medley.policies.pipeline.batching import DRAFTING_ROWS
from medley.protocol.stages.events import Drain, Guess, Guessed, GuessesEnd
from medley.protocol.stages.words import Draw
from medley.runtimes.simulated.kernel import MS, S
from medley.runtimes.simulated.serving.setup import Client
from medley.runtimes.simulated.serving.text import reference
from medley.runtimes.simulated.serving.watch import ServingWatcher
from medley.runtimes.simulated.serving.world import ServingWorld

SILENT = -1
PROMPT = (1, 3, 5, 7, 2, 4, 6)  # repeats nothing


class Oracle:
    """Guesses what will come: after `late_ns`, or never where that is SILENT."""

    def __init__(self, late_ns: int = MS, wrong: bool = False, empty: bool = False) -> None:
        self.late_ns, self.wrong, self.empty = late_ns, wrong, empty
        self.asked: list[Guess] = []
        self.full = 0  # times that it was asked while everybody decoded
        self.world: ServingWorld | None = None
        self._known: dict[int, list[Draw]] = {}

    def guess(self, effect: Guess) -> None:
        world = self.world
        assert world is not None
        self.asked.append(effect)
        answers = world.front.answers.values()
        self.full += sum(bool(a.draws) and not a.ended for a in answers) > DRAFTING_ROWS
        number = effect.opening.request
        draws = self._known.setdefault(number, reference(world.front.answers[number].asked, SHAPE.layers))
        first = len(effect.tokens) - len(world.front.answers[number].asked.prompt)
        tokens = () if self.empty else tuple(d.token + self.wrong for d in draws[first : first + effect.count])
        if self.late_ns != SILENT:
            answer = Guessed(number, len(effect.tokens), tokens, len(tokens) * MS // 4)
            world.kernel.after(self.late_ns, world.front.handle, answer)


class Passes(ServingWatcher):
    def __init__(self) -> None:
        self.count = 0

    def compute(self, world: Any, process: Any, effect: Any) -> None:
        self.count += effect.word.place == 0


def played(oracle: Oracle, *clients: Client, during: Callable[[ServingWorld], None] | None = None, **more: Any) -> int:
    """How many passes it took; everybody has the right tokens."""
    passes = Passes()
    given = setup(*clients, guesses=True, **more)
    world = ServingWorld(given, seed=1, watchers=(passes,))
    world.front.guesser = oracle  # type: ignore[assignment]
    oracle.world = world
    world.start()
    if during is not None:
        assert world.run(60 * S, lambda: bool(oracle.asked))
        during(world)
    assert world.run(world.kernel.now + 120 * S, world.answered), world.remarks
    right(world)
    return passes.count


def one(limit: int = 40, **how: Any) -> Client:
    return Client(0, asked(1, PROMPT, limit, **how))


SAMPLED = {"temperature": 1.0, "seed": 2, "choice": 1}


@pytest.mark.parametrize("how", [{}, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize(
    "kind",
    [{}, {"wrong": True}, {"empty": True}, {"late_ns": 20 * S}, {"late_ns": SILENT}],
    ids=["right", "wrong", "empty", "late", "silent"],
)
def test_tokens_are_those_without_a_draft_model(kind: dict[str, Any], how: dict[str, Any]) -> None:
    oracle = Oracle(**kind)
    played(oracle, one(**how))
    assert oracle.asked
    positions = [(guess.opening.request, len(guess.tokens)) for guess in oracle.asked]
    assert len(set(positions)) == len(positions), "asked once for a position"


def test_guesses_that_hold_save_traversals() -> None:
    without = played(Oracle(empty=True), one(**SAMPLED))
    assert played(Oracle(), one(**SAMPLED)) < 0.6 * without


def test_a_draft_model_that_never_answers_is_asked_once_by_each_request() -> None:
    oracle = Oracle(SILENT)
    played(oracle, one(), *[Client(5 * S + i * MS, asked(i, PROMPT[i:] + PROMPT[:i])) for i in range(2, 5)])
    assert len({guess.opening.request for guess in oracle.asked}) == len(oracle.asked)


def test_nothing_is_guessed_where_batches_are_full_anyhow() -> None:
    oracle = Oracle()
    many = [Client(5 * S, asked(i, [1 + (i * k) % 7 for k in range(1, 7)], 60)) for i in range(1, 9)]
    played(oracle, *many, kv_tokens=16 * 256)
    assert not oracle.full


def test_requests_that_want_no_draft_get_no_guess() -> None:
    oracle = Oracle()
    played(oracle, one(draft=False))
    assert not oracle.asked


@pytest.mark.parametrize("late_ns", [MS, 3 * S, SILENT])
def test_a_machine_that_is_drained_while_somebody_waits_for_a_guess(late_ns: int) -> None:
    def drained(world: ServingWorld) -> None:
        world.front.handle(Drain(world.front.role.pipelines[0].hops[0].node))

    played(Oracle(late_ns), one(500), during=drained, pins="", positions=2048)


@pytest.mark.parametrize("late_ns", [MS, 3 * S, SILENT])
def test_a_stage_dies_while_somebody_waits_for_a_guess(late_ns: int) -> None:
    played(Oracle(late_ns), one(200), during=lambda world: world.crash_engine("n1", "killed"))


def test_a_client_that_leaves_while_it_waits_for_a_guess_frees_every_stage() -> None:
    given = setup(Client(0, asked(1, PROMPT, 900), leaves_ns=4 * S), guesses=True)
    world = ServingWorld(given, seed=1)
    oracle = Oracle(SILENT)
    oracle.world, world.front.guesser = world, oracle  # type: ignore[assignment]
    world.start()
    assert world.run(60 * S, world.answered)
    assert oracle.asked and world.front.answers[1].draws
    world.run(world.kernel.now + 2 * S)
    assert {m.process.engine.kv_nbytes for m in world.machines.values() if m.process} == {0}


def test_a_draft_model_that_failed_is_explained_once_and_asked_no_more() -> None:
    oracle = Oracle()
    asked_before = 0

    def failed(world: ServingWorld) -> None:
        nonlocal asked_before
        asked_before = len(oracle.asked)
        for _ in range(2):
            world.front.handle(GuessesEnd("no memory"))
        assert said(world, "it failed: no memory; drafts come from the text alone")
        assert sum("drafts come" in text for _, text in world.remarks) == 1

    played(oracle, one(200), during=failed)
    assert len(oracle.asked) == asked_before
