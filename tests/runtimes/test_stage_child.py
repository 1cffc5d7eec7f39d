"""A stage's engine process: what it answers to a front's words, with real weights, planes and processes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.runtimes.stages import Child, HandFront, model_json
from tests.tinymodels import saved, tiny

from medley.concurrency import TaskGroup
from medley.runtimes.children.stage import PostsOnly

PROMPT = [5, 17, 99, 42, 8, 200, 3]


@pytest.fixture(scope="module")
def network() -> Any:
    return tiny("llama")


@pytest.fixture(scope="module")
def directory(network: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(network, tmp_path_factory.mktemp("model"))


def expected(network: Any, prompt: list[int], count: int) -> list[int]:
    out = network.generate(torch.tensor([prompt]), max_new_tokens=count, do_sample=False, eos_token_id=None)
    return out[0, len(prompt) :].tolist()


@asynccontextmanager
async def pipeline(directory: Path, *names: str, **environment: dict[str, str]) -> AsyncIterator[HandFront]:
    """Processes of these names, met and with the whole model's halves loaded by the first two."""
    front = await HandFront.open(PostsOnly())
    children = [Child(name, environment=environment.get(name, {})) for name in names]
    async with TaskGroup() as tasks:
        running = [tasks.create_task(child.process.run()) for child in children]
        try:
            await front.meet(children)
            yield front
        finally:
            for task in running:
                task.cancel()
            await front.plane.close()


async def test_two_stages_give_the_tokens_of_the_whole_model(network: Any, directory: Path) -> None:
    async with pipeline(directory, "a", "b") as front:
        a, b = front.children
        model = model_json(directory, str(directory))
        loaded = [await front.load(a, model, 0, 2), await front.load(b, model, 2, 4)]
        assert all(word.nbytes > 0 for word in loaded)
        front.lay_out([(a, 0, 2), (b, 2, 4)])
        assert await front.generate(1, PROMPT, 12) == expected(network, PROMPT, 12)
