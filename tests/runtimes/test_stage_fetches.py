"""Stage processes on machines that lack the model's files: layers come from the front, and the tokens are the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.runtimes.stages import Child, HandFront, model_json
from tests.tinymodels import saved, tiny

from medley.concurrency import TaskGroup
from medley.models.described import described
from medley.models.weightfiles import WeightFiles, directory_files
from medley.protocol.stages.words import Load, StageFailed
from medley.serving.weights_keeper import WeightsKeeper

PROMPT = [5, 17, 99, 42, 8, 200, 3]


@pytest.mark.timeout(300)
async def test_layers_are_fetched_from_the_front_where_no_file_is_or_another_one(tmp_path: Path) -> None:
    network = tiny("llama")
    directory, other = saved(network, tmp_path / "model"), tmp_path / "other"
    shard = sorted(saved(tiny("llama"), other).glob("*.safetensors"))[0]
    shard.write_bytes(shard.read_bytes()[:-2] + b"xx")
    model = model_json(directory, "")
    files = WeightFiles.open(directory_files(directory))
    children = [Child("a"), Child("b")]
    front = await HandFront.open(WeightsKeeper(files, described(model).fingerprint))
    async with TaskGroup() as tasks:
        running = [tasks.create_task(child.process.run()) for child in children]
        try:
            await front.meet(children)
            loaded = await front.load(children[0], model, 0, 2)
            front.post(children[0].address, Load(99, model_json(other, ""), 2, 3, 1 << 20))
            refused = await front.answer(StageFailed, lambda word: word.number == 99)
            assert "another model" in refused.reason
            await front.load(children[1], model_json(directory, str(other)), 2, 4)
            assert loaded.nbytes > 0
            assert front.plane.counters()["objects_served"] > 10
            front.lay_out([(children[0], 0, 2), (children[1], 2, 4)])
            tokens = await front.generate(1, PROMPT, 8)
        finally:
            for task in running:
                task.cancel()
            await front.plane.close()
    whole = network.generate(torch.tensor([PROMPT]), max_new_tokens=8, do_sample=False, eos_token_id=None)
    assert tokens == whole[0, len(PROMPT) :].tolist()
