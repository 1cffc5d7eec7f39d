"""The OpenAI API as the official client sees it, over a real socket."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator

import httpx
import openai
import pytest
from tests.serving.conftest import CONTEXT, Served
from tests.waiting import until

from medley.dashboard.relay import relay
from medley.engines.generate import Generator
from medley.engines.sampling import Sampling
from medley.engines.wording import Request
from medley.protocol.errors import Unavailable

QUESTION = [{"role": "user", "content": "What is a fever?"}]


@pytest.fixture
def client(served: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="unused", max_retries=0, timeout=30) as one:
        yield one


@pytest.fixture
def http(served: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=served.url, timeout=30, trust_env=False) as one:
        yield one


def test_models_are_listed(client: openai.OpenAI) -> None:
    assert [m.id for m in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "medley"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


def test_chat_answers_what_the_generator_answers(client: openai.OpenAI, generator: Generator) -> None:
    answer = client.chat.completions.create(model="tiny", messages=QUESTION, temperature=0, max_tokens=12)
    prompt = generator.prompt_tokens("What is a fever?")
    expected = generator.complete(Request(prompt, Sampling(12, stop=generator.default_stops)))
    assert answer.choices[0].message.content == expected.text
    assert answer.choices[0].finish_reason == expected.finish
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (len(prompt), expected.generated)


def test_stream_is_the_whole_in_pieces(client: openai.OpenAI) -> None:
    asked = {"model": "tiny", "messages": QUESTION, "temperature": 0.9, "seed": 4, "max_tokens": 24}
    whole = client.chat.completions.create(**asked)
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    pieces = [c.choices[0] for c in chunks if c.choices]
    assert pieces[0].delta.role == "assistant"
    assert "".join(p.delta.content or "" for p in pieces) == whole.choices[0].message.content
    assert [p.finish_reason for p in pieces if p.finish_reason] == [whole.choices[0].finish_reason]
    assert chunks[-1].choices == [] and chunks[-1].usage == whole.usage


def test_raw_stream_ends_with_done(http: httpx.Client) -> None:
    body = {"model": "tiny", "messages": QUESTION, "stream": True, "max_tokens": 3}
    answer = http.post("/v1/chat/completions", json=body)
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
    assert events[-1] == "[DONE]"
    assert all(json.loads(e)["object"] == "chat.completion.chunk" for e in events[:-1])


def test_completions_with_several_prompts_and_choices(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model="tiny", prompt=["Fever is", "A cold is"], n=2, seed=1, temperature=1, max_tokens=8
    )
    assert [c.index for c in answer.choices] == [0, 1, 2, 3]
    assert len({c.text for c in answer.choices}) == 4
    again = client.completions.create(model="tiny", prompt="A cold is", seed=1, temperature=1, max_tokens=8)
    assert again.choices[0].text == answer.choices[2].text


def test_completion_of_token_ids(client: openai.OpenAI, generator: Generator) -> None:
    ids = list(generator.text_tokens("Fever is"))
    both = [
        client.completions.create(model="tiny", prompt=p, temperature=0, max_tokens=6).choices[0].text
        for p in (ids, "Fever is")
    ]
    assert both[0] == both[1]


def test_seed_repeats(client: openai.OpenAI) -> None:
    texts = [
        client.chat.completions.create(model="tiny", messages=QUESTION, seed=seed, temperature=1.2, max_tokens=16)
        .choices[0]
        .message.content
        for seed in (1, 1, 2)
    ]
    assert texts[0] == texts[1] != texts[2]


def test_stop_string_ends_the_answer(client: openai.OpenAI) -> None:
    asked = {"model": "tiny", "prompt": "Fever is", "temperature": 1, "seed": 6, "max_tokens": 60}
    whole = client.completions.create(**asked).choices[0].text
    stop = next(c for c in whole[3:] if c.isascii())
    cut = client.completions.create(**asked, stop=[stop]).choices[0]
    assert cut.text == whole[: whole.index(stop)] and cut.finish_reason == "stop"


def test_logprobs(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="tiny", messages=QUESTION, temperature=0, max_tokens=4, logprobs=True, top_logprobs=3
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None and logprobs.content is not None
    assert len(logprobs.content) == 4
    for token in logprobs.content:
        assert token.logprob <= 0 and token.top_logprobs[0].logprob == token.logprob
        assert len(token.top_logprobs) == 3
    old = client.completions.create(model="tiny", prompt="Fever", temperature=0, max_tokens=3, logprobs=2)
    assert old.choices[0].logprobs is not None
    assert len(old.choices[0].logprobs.token_logprobs or []) == 3


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content"),
        ({"n": 9}, "n"),
        ({"n": True}, "n"),
        ({"temperature": 3}, "temperature"),
        ({"top_p": "high"}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"seed": 1 << 70}, "seed"),
        ({"frequency_penalty": 1.0}, "frequency_penalty"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"temprature": 1}, "temprature"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"stream": "yes"}, "stream"),
        ({"model": None}, "model"),
    ],
)
def test_bad_parameter_is_named(http: httpx.Client, change: dict[str, object], param: str) -> None:
    body = {"model": "tiny", "messages": QUESTION, "max_tokens": 2} | change
    answer = http.post("/v1/chat/completions", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"].keys() == {"message", "type", "param", "code"}
    assert answer.json()["error"]["param"] == param


def test_harmless_parameters_are_tolerated(client: openai.OpenAI) -> None:
    client.chat.completions.create(
        model="tiny",
        messages=QUESTION,
        max_completion_tokens=2,
        user="me",
        metadata={"a": "b"},
        frequency_penalty=0,
        response_format={"type": "text"},
    )


def test_unknown_model(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="answers as 'tiny'"):
        client.chat.completions.create(model="gpt", messages=QUESTION)


def test_question_longer_than_the_context(client: openai.OpenAI) -> None:
    long = [{"role": "user", "content": "fever " * CONTEXT}]
    with pytest.raises(openai.BadRequestError, match=f"context of {CONTEXT} tokens") as refused:
        client.chat.completions.create(model="tiny", messages=long)
    assert refused.value.code == "context_length_exceeded"


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        (b"{not json", "application/json", 400),
        (b"\xff\xfe", "application/json", 400),
        (b"[" * 100_000, "application/json", 400),
        (b"[]", "application/json", 400),
        (b'{"model": "tiny", "prompt": "\\ud800"}', "application/json", 400),
        (b'{"model": "tiny", "\\uD800": 1}', "application/json", 400),
        (b"{}", "text/plain", 415),
        (b"x" * ((8 << 20) + 1), "application/json", 413),
    ],
    ids=["syntax", "encoding", "nesting", "no object", "half a character", "half a name", "content type", "too large"],
)
def test_garbage_is_refused_and_harms_nothing(
    http: httpx.Client, client: openai.OpenAI, content: bytes, kind: str, status: int
) -> None:
    answer = http.post("/v1/chat/completions", content=content, headers={"content-type": kind})
    assert answer.status_code == status and "message" in answer.json()["error"]
    assert client.completions.create(model="tiny", prompt="Hi", max_tokens=1).choices


def test_body_without_a_length_is_limited_too(http: httpx.Client) -> None:
    chunks = (b"x" * (1 << 20) for _ in range(9))
    headers = {"content-type": "application/json"}
    assert http.post("/v1/completions", content=chunks, headers=headers).status_code == 413


def test_wrong_path_and_method(http: httpx.Client) -> None:
    assert http.get("/v2/nothing").status_code == 404
    answer = http.get("/v1/completions")
    assert answer.status_code == 405 and "error" in answer.json()


def test_health(http: httpx.Client) -> None:
    assert http.get("/health").json() == {"status": "ok"}


async def test_eight_at_once_answer_as_one_alone(served: Served, generator: Generator) -> None:
    async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="x", max_retries=0) as client:
        answers = await asyncio.gather(
            *(
                client.completions.create(model="tiny", prompt=f"Question {i}", seed=i, temperature=1, max_tokens=20)
                for i in range(8)
            )
        )
    for i, answer in enumerate(answers):
        sampling = Sampling(20, temperature=1.0, seed=i)
        alone = generator.complete(Request(generator.text_tokens(f"Question {i}"), sampling))
        assert answer.choices[0].text == alone.text


def test_client_that_leaves_frees_its_place(served: Served, http: httpx.Client) -> None:
    body = {"model": "tiny", "prompt": "Hi", "stream": True, "temperature": 2, "logit_bias": {}}
    for _ in range(3):
        with http.stream("POST", "/v1/completions", json=body) as answer:
            next(answer.iter_lines())
    until(lambda: served.engine.active == 0, what="an idle engine")


async def test_relay_passes_pieces_and_errors_on(served: Served, generator: Generator) -> None:
    pieces = [piece async for piece in relay(f"{served.url}/v1", "tiny", QUESTION)]
    assert "".join(pieces).strip() == generator.answer("What is a fever?", 1000)
    with pytest.raises(Unavailable, match="answers as 'tiny'"):
        [piece async for piece in relay(f"{served.url}/v1", "other", QUESTION)]
    with pytest.raises(Unavailable, match="does not answer"):
        [piece async for piece in relay("http://127.0.0.1:1/v1", "tiny", QUESTION)]
