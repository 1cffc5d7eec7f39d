"""Evaluation of a tiny model: the loss is the model's own, and the report says what was left out."""

from __future__ import annotations

import json
import math

import pytest
import torch

from medley.data.examples import Example
from medley.data.template import tokens_of
from medley.engines.generate import Generator
from medley.protocol.errors import UserError
from medley.serving.evaluate import evaluate
from medley.serving.metrics import rouge_l

EXAMPLES = [Example(str(i), "g", f"What is thing {i}?", "It is a thing. " * (i + 1)) for i in range(4)]


def own_loss(generator: Generator, example: Example) -> tuple[float, int]:
    prompt, answer = tokens_of(generator.tokenizer, example.question, example.answer)
    ids = torch.tensor([[*prompt, *answer]])
    labels = ids.clone()
    labels[:, : len(prompt)] = -100
    with torch.inference_mode():
        return float(generator.model(ids, labels=labels).loss) * len(answer), len(answer)


def test_figures_are_the_models_own(generator: Generator) -> None:
    seen = []
    report = evaluate(generator, EXAMPLES, max_tokens=8, draws=50, progress=seen.append)
    sums = [own_loss(generator, e) for e in EXAMPLES]
    loss = sum(s for s, _ in sums) / sum(n for _, n in sums)
    assert report.figures["loss"].value == pytest.approx(loss, rel=1e-5)
    assert report.figures["perplexity"].value == pytest.approx(math.exp(loss), rel=1e-5)
    assert report.answer_tokens == sum(n for _, n in sums)
    expected = [rouge_l(e.answer, generator.answer(e.question, 8)) for e in EXAMPLES]
    assert report.figures["rouge_l"].value == pytest.approx(sum(expected) / 4)
    assert [s.id for s in seen] == ["0", "1", "2", "3"]
    for figure in report.figures.values():
        assert figure.low <= figure.value <= figure.high


def test_report_is_plain_data_and_repeats(generator: Generator) -> None:
    first, again = (evaluate(generator, EXAMPLES, max_tokens=4, draws=20).as_json() for _ in range(2))
    assert json.loads(json.dumps(first)) == json.loads(json.dumps(again))
    assert {"model", "examples", "loss", "perplexity", "rouge_l", "token_f1", "skipped"} <= first.keys()
    assert first["loss"].keys() == {"value", "low", "high"}


def test_question_that_does_not_fit_is_named(generator: Generator) -> None:
    long = Example("long", "g", "why " * 300, "because")
    report = evaluate(generator, [EXAMPLES[0], long], max_tokens=2, draws=2)
    assert report.skipped == ("long",) and report.examples == 1
    with pytest.raises(UserError, match="no question fits"):
        evaluate(generator, [long])


def test_answer_longer_than_the_context_is_scored_whole(generator: Generator) -> None:
    long = Example("long", "g", "Why?", "word " * 200)
    report = evaluate(generator, [long], max_tokens=2, draws=2)
    assert report.answer_tokens >= 1000
