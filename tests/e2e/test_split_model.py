"""A model that the main job trained is served over three stages: the same log-probabilities and words as unsplit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import openai
import pytest
import torch
from bench.pipeline_rig import rig
from tests.e2e.house import house
from tests.e2e.test_whole import TINY, tiny
from tests.serving.conftest import serving

from medley.engines.generate import Generator
from medley.engines.sampling import Sampling
from medley.engines.wording import Request
from medley.serving.api import make_app
from medley.serving.fleet import ServeOptions, even_pins
from medley.serving.guard import Guard

QUESTIONS = ["How can I sleep better?", "What is a fever?", "Is it healthy to walk every day?"]
ANSWER_TOKENS, TOP = 16, 20


def trained(directory: Path) -> Path:
    """A pool trains a small Llama on the built-in data, and ends."""
    with house(directory, workers=2, shard_nodes=1) as it:
        shape = TINY["model"] | {"base": "llama-10m"}
        it.submit(tiny(batch_samples=8) | {"model": shape, "data": TINY["data"] | {"max_samples": 120}})
        seen = it.until_over()
        assert seen["state"] == "done", seen
        return Path(seen["export"])


def steps_of(network: Any, prompt: tuple[int, ...]) -> list[list[float]]:
    """Greedy, by transformers alone and without a cache: each step's likeliest twenty log-probabilities."""
    tokens, steps = list(prompt), []
    with torch.no_grad():
        for _ in range(ANSWER_TOKENS):
            step = torch.log_softmax(network(torch.tensor([tokens])).logits[0, -1], 0)
            steps.append(step.topk(TOP).values.tolist())
            tokens.append(int(step.argmax()))
    return steps


def ask(client: openai.OpenAI, question: str) -> Any:
    return client.chat.completions.create(
        model="trained",
        messages=[{"role": "user", "content": question}],
        max_tokens=ANSWER_TOKENS,
        temperature=0,
        logprobs=True,
        top_logprobs=TOP,
    ).choices[0]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_trained_model_over_three_stages_answers_as_it_does_unsplit(tmp_path: Path) -> None:
    model = trained(tmp_path / "training")
    whole = Generator.load(model, "fp32")
    pins = even_pins(["worker-1", "worker-2", "worker-3"], whole.model.config.num_hidden_layers)
    options = ServeOptions("fp32", pins=pins, expected=3, local=True, kv_tokens=2048)
    with rig(model, tmp_path / "pool", 3, options) as made:
        app = make_app(made.words, "trained", made.attached)
        with (
            serving(Guard(app)) as url,
            openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=120) as client,
        ):
            for question in QUESTIONS:
                prompt = whole.prompt_tokens(question)
                alone = whole.complete(Request(prompt, Sampling(ANSWER_TOKENS, stop=whole.default_stops)))
                said = ask(client, question)
                assert (said.message.content, said.finish_reason) == (alone.text, alone.finish)
                for given, wanted in zip(said.logprobs.content, steps_of(whole.model, prompt), strict=False):
                    assert [one.logprob for one in given.top_logprobs] == pytest.approx(wanted, abs=1e-5)
                assert said.logprobs.content
