"""The built-in corpus: consumer-health questions and answers, written for Medley, that the demo trains on.

Promises that pairs and checks come in the same order on every machine, and that no check question is among
the phrasings of any pair. Leaves splitting, templates and tokens to the neighbours. See NOTICE.md.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

NOTICE = (
    "This is no medical advice: the built-in questions and answers only show a model being trained, "
    "so ask a doctor or a pharmacist about anything that concerns your health."
)

_CHECKS = "checks.jsonl"


@dataclass(frozen=True, slots=True)
class Pair:
    """One answer and the phrasings of the question it answers; `id` is `focus.qtype` and unique."""

    id: str
    focus: str
    topic: str
    qtype: str
    questions: tuple[str, ...]
    answer: str


@dataclass(frozen=True, slots=True)
class Check:
    """A rewording of the question of the pair `pair_id`, for asking after training and never trained on."""

    pair_id: str
    question: str


@cache
def load_pairs() -> tuple[Pair, ...]:
    """Every pair, topic by topic in the order of the file names, then in the order of the lines."""
    return tuple(_pair(row) for name in _topic_files() for row in _rows(name))


@cache
def load_checks() -> tuple[Check, ...]:
    """The twenty check questions, in the order of their file."""
    return tuple(Check(pair_id=row["pair_id"], question=row["question"]) for row in _rows(_CHECKS))


def _pair(row: dict[str, Any]) -> Pair:
    return Pair(
        id=row["id"],
        focus=row["focus"],
        topic=row["topic"],
        qtype=row["qtype"],
        questions=tuple(row["questions"]),
        answer=row["answer"],
    )


def _topic_files() -> list[str]:
    # Each system lists a folder in an order of its own; the sample numbers must not depend on it.
    names = (entry.name for entry in resources.files(__name__).iterdir())
    return sorted(name for name in names if name.endswith(".jsonl") and name != _CHECKS)


def _rows(name: str) -> Iterator[dict[str, Any]]:
    text = resources.files(__name__).joinpath(name).read_text(encoding="utf-8")
    return (json.loads(line) for line in text.splitlines() if line)
