"""`ask` and `chat` use a model that the pool here serves, and load it where they are told to or must."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from tests.cli.canned import Canned, running
from tests.serving.conftest import Served, serving

from medley.cli import chat
from medley.cli.main import run
from medley.engines.generate import Generator
from medley.engines.sampling import Sampling
from medley.protocol.errors import Unavailable, UserError
from medley.serving.api import make_app
from medley.serving.engine import Engine
from medley.serving.guard import Guard
from medley.serving.offers import Offer
from medley.serving.remote import KEY, TooLong, answer, offered

QUESTION = [{"role": "user", "content": "What is a fever?"}]


def entry(offer: Offer) -> dict[str, Any]:
    return {"job": offer.job, "name": offer.name, "note": {"serving": True, "offer": offer.noted}}


@pytest.fixture
def offer(served: Served) -> Offer:
    return Offer("tiny", f"{served.url}/v1", job="tiny-1a2b")


@pytest.fixture
def coordinator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offer: Offer) -> Iterator[Canned]:
    monkeypatch.setenv("MEDLEY_HOME", str(tmp_path))
    monkeypatch.delenv(KEY, raising=False)
    with running(tmp_path / "coordinator") as canned:
        canned.answers["servings"] = {"servings": [entry(offer)]}
        yield canned


def test_a_question_goes_to_the_served_model(
    coordinator: Canned, generator: Generator, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["ask", "tiny", "What is a fever?", "--max-tokens", "10", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["answer"] == generator.answer("What is a fever?", 10)
    assert told["prompt_tokens"] == len(generator.prompt_tokens("What is a fever?"))
    assert told["finish"] in {"stop", "length"} and 0 < told["tokens"] <= 10


def test_who_wants_it_loaded_gets_it_loaded(coordinator: Canned, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--local"], ["--dtype", "fp32"]):
        assert run(["ask", "./tiny", "Why?", *words]) == 2
        assert "there is no directory './tiny'" in capsys.readouterr().err
    assert coordinator.asked == []


def test_nothing_is_offered_where_no_coordinator_runs_or_it_serves_something_else(
    coordinator: Canned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert offered("tiny") is not None and offered("other") is None
    del coordinator.answers["servings"]
    assert offered("tiny") is None  # one of an older version
    monkeypatch.setenv("MEDLEY_HOME", str(tmp_path / "elsewhere"))
    assert offered("tiny") is None


def test_a_conversation_goes_to_the_served_model(coordinator: Canned, generator: Generator, offer: Offer) -> None:
    told = CliRunner().invoke(
        chat.command, ["tiny", "--max-tokens", "6"], input="What is a fever?\n/new\nAnd a cold?\n"
    )
    assert told.exit_code == 0
    assert f"tiny at {offer.url}: ask something" in told.output
    assert generator.answer("What is a fever?", 6) in told.output
    assert generator.answer("And a cold?", 6) in told.output


def test_a_conversation_that_no_longer_fits_forgets_its_beginning(offer: Offer) -> None:
    turns = [{"role": r, "content": f"{r} {i} " * 6} for i in range(9) for r in ("user", "assistant")]
    pieces, kept = chat.OverApi(offer, Sampling(4)).answer([], [*turns, {"role": "user", "content": "last"}])
    assert "".join(pieces)
    assert 1 < len(kept) < len(turns) and kept[0]["role"] == "user" and kept[-1]["content"] == "last"


def test_what_cannot_be_answered_is_a_sentence(offer: Offer) -> None:
    with pytest.raises(TooLong, match="context of 256 tokens"):
        list(answer(offer, [{"role": "user", "content": "why " * 300}], Sampling(4)))
    with pytest.raises(UserError, match="the model 'other' does not exist here"):
        list(answer(replace(offer, name="other"), QUESTION, Sampling(4)))
    with pytest.raises(Unavailable, match="which does not answer .*--local loads it here"):
        list(answer(replace(offer, url="http://127.0.0.1:9/v1"), QUESTION, Sampling(4)))


def test_a_key_is_taken_from_the_environment_and_asked_for_where_it_is_missing(
    generator: Generator, offer: Offer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(Guard(make_app(generator, "tiny", Engine(generator)), "a-long-key")) as url:
        locked = replace(offer, url=f"{url}/v1", keyed=True)
        with pytest.raises(UserError, match=f"with a key: set {KEY}, or load it here with --local"):
            list(answer(locked, QUESTION, Sampling(4)))
        monkeypatch.setenv(KEY, "a-long-key")
        assert list(answer(locked, QUESTION, Sampling(4)))[-1].tokens > 0
