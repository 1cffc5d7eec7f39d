"""A draft model guesses what the model itself would draw, whatever was guessed, kept or dropped before."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.serving.conftest import byte_tokenizer
from tests.tinymodels import tiny

from medley.engines.generate import Generator
from medley.engines.guesser import TEXTS, Guesser
from medley.engines.sampling import Sampling
from medley.engines.wording import Request
from medley.protocol.errors import UserError

PROMPT = tuple(range(3, 60))
GREEDY, WARM = Sampling(24, logprobs=0), Sampling(24, 0.9, seed=5, choice=1, logprobs=0)


@pytest.fixture(scope="module", params=["llama", "mistral", "opt"])
def generator(request: pytest.FixtureRequest) -> Generator:
    """Mistral's window is shorter than the prompt."""
    return endless(tiny(request.param))


def endless(model: Any) -> Generator:
    model.config.eos_token_id = model.generation_config.eos_token_id = None
    made = Generator.of(model, byte_tokenizer(), "tiny")
    return Generator(made.tokenizer, made.name, made.context, made.vocabulary, frozenset(), made.model)


def drawn(generator: Generator, prompt: tuple[int, ...], sampling: Sampling) -> tuple[int, ...]:
    return tuple(told.token for told in generator.complete(Request(prompt, sampling)).tokens)


@pytest.mark.parametrize("sampling", [GREEDY, WARM], ids=["greedy", "sampled"])
def test_it_guesses_what_it_would_draw_and_goes_on_from_what_held(generator: Generator, sampling: Sampling) -> None:
    guesser = Guesser(generator, generator.vocabulary, 4096)
    wanted = drawn(generator, PROMPT, sampling)
    told, read = guesser.guess(1, PROMPT, 6, sampling)
    assert told == wanted[:6]
    assert read == len(PROMPT)
    wrong = (*PROMPT, *wanted[:3], 7)
    guesser.guess(1, wrong, 9, sampling)
    told, read = guesser.guess(1, (*PROMPT, *wanted[:10]), 8, sampling)
    assert told == wanted[10:18]
    assert read <= 8, "what was alike is not read again"
    told, read = guesser.guess(1, PROMPT, 4, sampling)
    assert (told, read) == (wanted[:4], 1)


def test_several_texts_keep_their_own_cache_and_only_the_latest_do(generator: Generator) -> None:
    guesser = Guesser(generator, generator.vocabulary, 4096)
    prompts = {name: (*PROMPT, name) for name in range(1, TEXTS + 2)}
    for name, prompt in prompts.items():
        guesser.guess(name, prompt, 1, GREEDY)
    assert guesser.guess(2, prompts[2], 3, GREEDY) == (drawn(generator, prompts[2], GREEDY)[:3], 1)
    assert guesser.guess(1, prompts[1], 3, GREEDY)[1] == len(prompts[1])


def test_there_is_room_for_so_many_tokens(generator: Generator) -> None:
    guesser = Guesser(generator, generator.vocabulary, 100)
    assert guesser.guess(1, PROMPT, 44, GREEDY) == ((), 0)
    assert guesser.guess(1, PROMPT, 4, GREEDY)[1] == len(PROMPT)
    assert guesser.guess(2, PROMPT, 4, GREEDY)[1] == len(PROMPT)
    assert guesser.guess(1, PROMPT, 4, GREEDY)[1] == len(PROMPT), "the second took its place"


def test_what_it_cannot_read_it_does_not_guess_about(generator: Generator) -> None:
    guesser = Guesser(generator, 200, 4096)
    assert guesser.guess(1, (*PROMPT, 200), 4, GREEDY) == ((), 0)
    end = tuple(3 + i % 50 for i in range(generator.context - 2))
    assert len(guesser.guess(1, end, 4, GREEDY)[0]) == 2
    assert guesser.guess(1, (*end, 3, 3), 4, GREEDY) == ((), 0)
    assert guesser.guess(1, PROMPT, 0, GREEDY) == ((), 0)


def test_no_token_beyond_the_large_models_is_guessed() -> None:
    generator = endless(tiny("llama"))
    vocabulary = max(drawn(generator, PROMPT, GREEDY))
    told, _ = Guesser(generator, vocabulary, 4096).guess(1, tuple(t % vocabulary for t in PROMPT), 16, GREEDY)
    assert len(told) == 16
    assert max(told) < vocabulary


def test_a_model_without_a_cache_is_refused() -> None:
    model = tiny("llama")
    forward = model.forward
    model.forward = lambda **given: forward(**{**given, "past_key_values": None, "use_cache": False})
    with pytest.raises(UserError, match="keeps no KV cache"), torch.inference_mode():
        Guesser(endless(model), 258, 4096).warm_up()
