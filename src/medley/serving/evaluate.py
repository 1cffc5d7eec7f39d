"""How good a model's answers are: loss and perplexity of the reference answers, and likeness of its own
greedy ones.

Loss counts answer tokens (and the end mark) only, exactly as training does, and is weighted by tokens;
ROUGE-L and token F1 are means over examples. Every figure comes with a 95 % bootstrap interval over examples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from medley.data.examples import Example
from medley.data.template import prompt_tokens, windows
from medley.protocol.errors import UserError
from medley.serving.metrics import Interval, intervals, rouge_l, token_f1

if TYPE_CHECKING:
    from medley.engines.generate import Generator


@dataclass(frozen=True, slots=True)
class Score:
    """One example: summed loss (nats) over its answer tokens, and how the model's own answer compares."""

    id: str
    question: str
    reference: str
    answer: str
    loss_sum: float
    answer_tokens: int
    rouge_l: float
    token_f1: float


@dataclass(frozen=True, slots=True)
class Report:
    """What `medley eval` prints. `skipped` names the examples whose question is longer than the context."""

    model: str
    examples: int
    answer_tokens: int
    skipped: tuple[str, ...]
    figures: dict[str, Interval]
    bootstrap_draws: int
    seed: int

    def as_json(self) -> dict[str, Any]:
        """Plain data for `--json`: the figures stand at the top level."""
        plain = asdict(self)
        return {**plain, **plain.pop("figures"), "confidence": 0.95}


def evaluate(
    generator: Generator,
    examples: Sequence[Example],
    *,
    max_tokens: int = 256,
    draws: int = 1000,
    seed: int = 0,
    progress: Callable[[Score], None] = lambda score: None,
) -> Report:
    """Scores every example. Raises UserError when no question fits the context."""
    scores: list[Score] = []
    skipped: list[str] = []
    for example in examples:
        if len(prompt_tokens(generator.tokenizer, example.question)) >= generator.context:
            skipped.append(example.id)
            continue
        scores.append(score_one(generator, example, max_tokens))
        progress(scores[-1])
    if not scores:
        raise UserError(f"no question fits the context of {generator.name}, {generator.context} tokens")
    return report_of(generator.name, scores, tuple(skipped), draws, seed)


def score_one(generator: Generator, example: Example, max_tokens: int) -> Score:
    """The loss of the reference and the likeness of the greedy answer, for one example."""
    parts = [
        generator.answer_loss(window.tokens[: window.learned], window.tokens[window.learned :])
        for window in windows(generator.tokenizer, example, generator.context)
    ]
    answer = generator.answer(example.question, max_tokens)
    return Score(
        example.id,
        example.question,
        example.answer,
        answer,
        sum(loss for loss, _ in parts),
        sum(count for _, count in parts),
        rouge_l(example.answer, answer),
        token_f1(example.answer, answer),
    )


def report_of(model: str, scores: Sequence[Score], skipped: tuple[str, ...], draws: int, seed: int) -> Report:
    """The figures of many scores with their intervals, resampled by example and paired across figures."""
    loss_n = np.array([s.loss_sum for s in scores])
    tokens_n = np.array([s.answer_tokens for s in scores])
    rouge_n = np.array([s.rouge_l for s in scores])
    f1_n = np.array([s.token_f1 for s in scores])
    figures = intervals(
        {
            "loss": lambda n: float(loss_n[n].sum() / tokens_n[n].sum()),
            "perplexity": lambda n: float(np.exp(loss_n[n].sum() / tokens_n[n].sum())),
            "rouge_l": lambda n: float(rouge_n[n].mean()),
            "token_f1": lambda n: float(f1_n[n].mean()),
        },
        len(scores),
        draws,
        seed,
    )
    return Report(model, len(scores), int(tokens_n.sum()), skipped, figures, draws, seed)
