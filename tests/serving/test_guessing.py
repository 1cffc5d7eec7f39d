"""A draft model beside a split one: the same tokens as without, in fewer traversals, and no answer lost by it."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from bench.pipeline_rig import SMALL, Rig, checkpoint, rig
from tests.serving.conftest import byte_tokenizer

from medley.cli.watching import lines
from medley.engines.sampling import Sampling
from medley.engines.wording import Wording
from medley.models.tokenizer import train_tokenizer
from medley.protocol.errors import UserError
from medley.protocol.stages.events import Guess, Guessed, GuessesEnd, Post
from medley.protocol.stages.words import Opening, Pass
from medley.serving.fleet import ServeOptions
from medley.serving.guessing import Guessing, check_vocabularies

pytestmark = pytest.mark.timeout(300)

PROMPT = [11 + (13 * i) % 280 for i in range(32)]
HOW = [Sampling(48, logprobs=0), Sampling(48, 0.8, seed=3, logprobs=0)]
DELAY_S = 0.05  # so that a guess is worth its time on any machine
PINS = "worker-1=1,worker-2=1"
OPENING = Opening(1, 0.0, 1.0, 0, 0, 0, -1, 0, 0)


# -- vocabularies -----------------------------------------------------------------------------------------------------


class Words:
    def __init__(self, *texts: str) -> None:
        self.numbers = {text: number for number, text in enumerate(texts)}

    def get_vocab(self) -> dict[str, int]:
        return self.numbers


def words(tokenizer: Any, name: str) -> Wording:
    return Wording(tokenizer, name, 64, 999, frozenset())


def test_a_vocabulary_may_go_on_longer_but_not_differ() -> None:
    three = words(Words("a", "b", "c"), "large")
    check_vocabularies(three, words(Words("a", "b", "c"), "small"))
    check_vocabularies(three, words(Words("a", "b", "c", "d"), "small"))
    check_vocabularies(three, words(Words("a", "b"), "small"))
    with pytest.raises(
        UserError, match=r"'small' has another vocabulary than large: token 1 is 'b' there and 'd' here"
    ):
        check_vocabularies(three, words(Words("a", "d", "c"), "small"))


def test_real_tokenizers_are_told_apart(tmp_path: Path) -> None:
    trained = words(train_tokenizer(["some text"], 300, tmp_path), "trained")
    check_vocabularies(trained, trained)
    with pytest.raises(UserError, match="take a smaller model of the same family"):
        check_vocabularies(words(byte_tokenizer(), "bytes"), trained)


# -- the thread -------------------------------------------------------------------------------------------------------


class Scripted:
    """In place of a model: what it answers, in order; an error is raised."""

    def __init__(self, *answers: tuple[tuple[int, ...], int] | Exception) -> None:
        self.answers = list(answers)

    def guess(self, text: int, tokens: Sequence[int], count: int, sampling: Sampling) -> tuple[tuple[int, ...], int]:
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.fixture
def told() -> queue.SimpleQueue[Guessed | GuessesEnd]:
    return queue.SimpleQueue()


def begun(model: Scripted, told: queue.SimpleQueue[Guessed | GuessesEnd]) -> Guessing:
    made = Guessing(model, 1)  # type: ignore[arg-type]
    made.begin(told.put)
    return made


def test_every_guess_is_answered_in_order(told: queue.SimpleQueue[Guessed | GuessesEnd]) -> None:
    guessing = begun(Scripted(((7, 8), 1), ((), 0), ((9,), 500)), told)
    for length in (3, 4, 5):
        guessing.guess(Guess(OPENING, tuple(range(length)), 2))
    answers = [told.get(timeout=30) for _ in range(3)]
    guessing.close()
    assert [(a.position, a.tokens) for a in answers if isinstance(a, Guessed)] == [(3, (7, 8)), (4, ()), (5, (9,))]
    assert isinstance(answers[2], Guessed) and answers[2].spent_ns == 0, "most of it was reading"


def test_an_error_ends_guessing_and_is_told_once(told: queue.SimpleQueue[Guessed | GuessesEnd]) -> None:
    guessing = begun(Scripted(((7,), 1), RuntimeError("no memory\nfor it"), ((8,), 1)), told)
    for length in (3, 4, 5):
        guessing.guess(Guess(OPENING, tuple(range(length)), 2))
    assert isinstance(told.get(timeout=30), Guessed)
    assert told.get(timeout=30) == GuessesEnd("no memory")
    guessing.close()
    assert told.empty()


# -- real processes ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("models") / "large", {**SMALL, "num_hidden_layers": 2})


@dataclass
class Delayed:
    """A rig in which whatever is to be computed reaches the first stage later. `passes`: that were sent."""

    rig: Rig
    passes: int = 0

    def __post_init__(self) -> None:
        host = self.rig.engine.host
        send = host._send

        def later(effect: Post) -> None:
            if not isinstance(effect.word, Pass):
                send(effect)
                return
            self.passes += 1
            assert host._loop is not None
            host._loop.call_later(DELAY_S, send, effect)

        host._send = later  # type: ignore[method-assign]


@pytest.fixture(scope="module")
def split(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Delayed]:
    """Guessing for itself: it agrees with itself."""
    options = ServeOptions("fp32", pins=PINS, expected=2, local=True, draft_model=str(model))
    with rig(model, tmp_path_factory.mktemp("pool"), 2, options) as made:
        yield Delayed(made)


def drafts(made: Delayed) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = made.rig.note()["pipelines"][0]["drafts"]
    return found


@pytest.fixture(scope="module")
def undisturbed(model: Path) -> list[list[int]]:
    from medley.engines.generate import Generator
    from medley.engines.wording import Request

    whole = Generator.load(model, "fp32")
    return [[told.token for told in whole.complete(Request(tuple(PROMPT), how)).tokens] for how in HOW]


@pytest.mark.parametrize("place", range(len(HOW)), ids=["greedy", "sampled"])
def test_the_same_tokens_in_fewer_traversals(split: Delayed, undisturbed: list[list[int]], place: int) -> None:
    before, passes = drafts(split).get("model", {"tokens": 0, "right": 0}), split.passes
    told = asyncio.run(split.rig.ask(PROMPT, HOW[place]))
    assert told.tokens == undisturbed[place]
    after = drafts(split)["model"]
    assert after["right"] - before["right"] > 10
    assert after["right"] - before["right"] == after["tokens"] - before["tokens"], "it agrees with itself"
    assert split.passes - passes < len(told.tokens) / 2
    shown = lines({"servings": [{"job": "j", "name": "large", "note": split.rig.note()}]})
    assert any(f"{after['right']} of {after['tokens']} by the draft model" in line for line in shown)


def test_a_draft_model_that_fails_costs_no_answer(split: Delayed, undisturbed: list[list[int]]) -> None:
    guessing = split.rig.engine.host._guessing
    assert guessing is not None
    guessing._guesser = Scripted(IndexError("out of range"))  # type: ignore[assignment]
    assert asyncio.run(split.rig.ask(PROMPT, HOW[0])).tokens == undisturbed[0]
    said = [d["text"] for d in split.rig.note()["decisions"] if d["subject"] == "draft model"]
    assert said == ["it failed: out of range; drafts come from the text alone"]
    assert asyncio.run(split.rig.ask(PROMPT, HOW[1])).tokens == undisturbed[1]
