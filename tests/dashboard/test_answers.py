"""The page's chat of a job's result: a real serving process below it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from tests.serving.conftest import byte_tokenizer, tiny_llama

from medley.dashboard.answers import Answers
from medley.engines.generate import Generator
from medley.protocol.errors import Unavailable

QUESTION = "What is a fever?"


async def answer(directory: Path, *models: str) -> list[str]:
    answers = Answers(directory)
    try:
        asked = [{"role": "user", "content": QUESTION}]
        return ["".join([piece async for piece in answers.ask(model, asked)]) for model in models]
    finally:
        await answers.close()


@pytest.mark.timeout(180)
def test_the_result_of_a_job_answers_again_and_again(tmp_path: Path) -> None:
    generator = Generator.of(tiny_llama(), byte_tokenizer(), "tiny")
    generator.model.save_pretrained(tmp_path / "exports" / "tiny-1")
    generator.tokenizer.save_pretrained(tmp_path / "exports" / "tiny-1")
    first, second = asyncio.run(answer(tmp_path, "tiny-1", "tiny-1"))
    assert first and first == second


@pytest.mark.parametrize("model", ["nothing", "../exports/tiny", ""])
def test_what_no_job_made_is_one_sentence(model: str, tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="there is no trained model"):
        asyncio.run(answer(tmp_path, model))
