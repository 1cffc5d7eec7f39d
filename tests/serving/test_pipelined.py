"""A model split over three processes behind the OpenAI API: the same answers as whole, whatever anybody asks."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import torch
from bench.pipeline_rig import Rig, rig
from tests.serving.conftest import byte_tokenizer, serving
from transformers import LlamaConfig, LlamaForCausalLM

from medley.engines.generate import Generator
from medley.engines.sampling import Sampling
from medley.serving.api import make_app
from medley.serving.fleet import ServeOptions
from medley.serving.guard import Guard

pytestmark = pytest.mark.timeout(300)

CONTEXT = 512
LAYERS = 6
QUESTIONS = [f"what is {n} plus {n * n}? " + "well, " * (n % 5) for n in range(32)]


@dataclass(frozen=True, slots=True)
class Split:
    """The model whole, and over three stages with an address."""

    url: str
    rig: Rig
    whole: Generator


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights wide enough apart that every token is a clear choice."""
    folder = tmp_path_factory.mktemp("split") / "split"
    torch.manual_seed(5)
    config = LlamaConfig(
        vocab_size=258,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        initializer_range=0.12,
        bos_token_id=0,
        eos_token_id=1,
    )
    LlamaForCausalLM(config).save_pretrained(str(folder))
    byte_tokenizer().save_pretrained(str(folder))
    return folder


@pytest.fixture(scope="module")
def split(directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Split]:
    pins = "worker-1=2,worker-2=2,worker-3=2"
    options = ServeOptions("fp32", pins=pins, survive=1, expected=3, local=True, kv_tokens=40 * CONTEXT)
    with rig(directory, tmp_path_factory.mktemp("pool"), 3, options) as made:
        app = make_app(made.words, "split", made.attached)
        with serving(Guard(app)) as url:
            yield Split(url, made, Generator.load(directory, "fp32"))


@pytest.fixture
def client(split: Split) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{split.url}/v1", api_key="none", max_retries=0, timeout=120) as made:
        yield made


def expected(split: Split, prompt: str, **how: Any) -> str:
    from medley.engines.wording import Request

    sampling = Sampling(**how)
    return split.whole.complete(Request(split.whole.text_tokens(prompt), sampling)).text


def test_greedy_text_is_that_of_the_whole_model(client: openai.OpenAI, split: Split) -> None:
    for prompt in QUESTIONS[:4]:
        said = client.completions.create(model="split", prompt=prompt, max_tokens=40, temperature=0)
        assert said.choices[0].text == expected(split, prompt, max_tokens=40)


def test_sampled_text_is_that_of_the_whole_model(client: openai.OpenAI, split: Split) -> None:
    said = client.completions.create(model="split", prompt=QUESTIONS[3], max_tokens=40, temperature=0.8, seed=7, n=2)
    wanted = [
        expected(split, QUESTIONS[3], max_tokens=40, temperature=0.8, seed=7, choice=choice) for choice in range(2)
    ]
    assert [choice.text for choice in said.choices] == wanted
    assert wanted[0] != wanted[1]


def test_a_prompt_of_several_chunks(client: openai.OpenAI, split: Split) -> None:
    prompt = "a long story about a short walk. " * 14
    said = client.completions.create(model="split", prompt=prompt, max_tokens=20, temperature=0)
    assert said.choices[0].text == expected(split, prompt, max_tokens=20)


def test_a_stream_is_the_whole_in_pieces(client: openai.OpenAI, split: Split) -> None:
    pieces = client.completions.create(
        model="split", prompt=QUESTIONS[5], max_tokens=30, temperature=0, stream=True
    )  # fmt: skip
    text = "".join(piece.choices[0].text for piece in pieces if piece.choices)
    assert text == expected(split, QUESTIONS[5], max_tokens=30)


def test_chat_with_usage(client: openai.OpenAI) -> None:
    said = client.chat.completions.create(
        model="split", messages=[{"role": "user", "content": "hello"}], max_completion_tokens=9, temperature=0
    )
    assert said.usage is not None
    assert said.usage.completion_tokens <= 9
    assert said.choices[0].finish_reason in ("length", "stop")


def test_stop_string_ends_the_answer(client: openai.OpenAI, split: Split) -> None:
    whole = expected(split, QUESTIONS[2], max_tokens=40)
    stop = whole[10:13]
    said = client.completions.create(model="split", prompt=QUESTIONS[2], max_tokens=40, temperature=0, stop=stop)
    assert said.choices[0].text == whole[: whole.find(stop)]
    assert said.choices[0].finish_reason == "stop"


def test_logprobs_are_those_of_the_whole_model(client: openai.OpenAI, split: Split) -> None:
    from medley.engines.wording import Request

    prompt = QUESTIONS[1]
    said = client.completions.create(model="split", prompt=prompt, max_tokens=12, temperature=0, logprobs=3)
    told = split.whole.complete(Request(split.whole.text_tokens(prompt), Sampling(12, logprobs=3)))
    assert said.choices[0].logprobs is not None
    assert said.choices[0].logprobs.token_logprobs == pytest.approx([t.logprob for t in told.tokens], abs=1e-4)
    tops = [{split.whole.token_text(token): p for token, p in one.top} for one in told.tokens]
    for given, wanted in zip(said.choices[0].logprobs.top_logprobs or [], tops, strict=True):
        assert given == pytest.approx(wanted, abs=1e-4)


async def test_thirty_two_at_once_answer_as_one_alone(split: Split) -> None:
    async with openai.AsyncOpenAI(base_url=f"{split.url}/v1", api_key="none", max_retries=0, timeout=120) as client:
        asked = [
            client.completions.create(model="split", prompt=prompt, max_tokens=24, temperature=0)
            for prompt in QUESTIONS
        ]
        said = await asyncio.gather(*asked)
    assert [one.choices[0].text for one in said] == [expected(split, prompt, max_tokens=24) for prompt in QUESTIONS]


def test_a_client_that_leaves_frees_every_stage(split: Split) -> None:
    body = {"model": "split", "prompt": QUESTIONS[0], "max_tokens": 400, "temperature": 0, "stream": True, "n": 4}
    with httpx.stream("POST", f"{split.url}/v1/completions", json=body, timeout=60) as stream:
        next(stream.iter_lines())
    split.rig.wait(lambda note: not any(p["requests"] for p in note["pipelines"]), "the end of what nobody reads")


@pytest.mark.parametrize(
    "change, param",
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"temperature": 9}, "temperature"),
        ({"n": 99}, "n"),
        ({"frequency": 1}, "frequency"),
        ({"prompt": [99999]}, "prompt"),
        ({"prompt": "x" * 600}, "prompt"),
    ],
)
def test_what_cannot_be_is_refused_in_the_apis_own_shape(split: Split, change: dict[str, Any], param: str) -> None:
    body = {"model": "split", "prompt": "a", "max_tokens": 4, **change}
    answer = httpx.post(f"{split.url}/v1/completions", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param
    assert httpx.get(f"{split.url}/health").status_code == 200


@pytest.mark.parametrize("way", [signal.SIGKILL, signal.SIGSTOP])
def test_a_stage_dies_in_mid_sentence_and_no_word_is_lost(split: Split, way: signal.Signals) -> None:
    split.rig.wait_reserves()
    prompt = split.whole.text_tokens(QUESTIONS[9])
    sampling = Sampling(60, 0.7, seed=4, logprobs=0)
    undisturbed = asyncio.run(split.rig.ask(prompt, sampling))
    victim = split.rig.note()["pipelines"][0]["hops"][1]["machine"]

    def hurt(tokens: int) -> None:
        if tokens == 20:
            os.kill(split.rig.stages()[victim], way)

    told = asyncio.run(split.rig.ask(prompt, sampling, hurt))
    assert told.tokens == undisturbed.tokens
    assert told.finish == undisturbed.finish
    said = [d["text"] for d in split.rig.note()["decisions"] if "go on after" in d["text"]]
    assert "in reserve" in said[-1], "the layers were there already"
    split.rig.wait(lambda note: sum(m["up"] for m in note["machines"]) == 3, "the return of the machine")
