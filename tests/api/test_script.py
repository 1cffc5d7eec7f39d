"""A person's script as they would run it: the class stands in the script itself, the workers import it by its name."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

TASK = """
import json, sys
import torch
from torch import nn
import medley

class Line(medley.Task):
    def __init__(self, slope: float = 3.0) -> None:
        self.slope = slope

    def model(self): return nn.Linear(1, 1)
    def heldout(self): return self.dataset()[:10]
    def dataset(self): return [(torch.tensor([x / 50]), torch.tensor([self.slope * x / 50 + 1])) for x in range(100)]
    def loss(self, model, batch): return nn.functional.mse_loss(model(batch[0]), batch[1])

"""
GUARDED = (
    TASK
    + """
if __name__ == "__main__":
    seen = []
    result = medley.train(Line, directory=sys.argv[1], on_event=seen.append, task_options={"slope": 2.0},
                          epochs=60, batch_samples=20, optimizer__lr=0.05, encrypt=False)
    kinds = sorted({event["kind"] for event in seen})
    print(json.dumps([result.state, result.samples, result.model().weight.item(), kinds, str(result.path)]))
"""
)
UNGUARDED = TASK + "medley.train(Line, directory=sys.argv[1])\n"


def run(folder: Path, code: str) -> subprocess.CompletedProcess[str]:
    script = folder / "straight.py"
    script.write_text(code)
    command = [sys.executable, str(script), str(folder / "state")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=240, cwd=folder, env=environment)


def test_a_script_trains_its_own_class_and_loads_what_it_learned(tmp_path: Path) -> None:
    done = run(tmp_path, GUARDED)
    assert done.returncode == 0, done.stderr
    state, samples, weight, kinds, path = json.loads(done.stdout.splitlines()[-1])
    assert (state, samples) == ("done", 6000)
    assert weight == pytest.approx(2.0, abs=0.2)
    assert {"commit", "state"} <= set(kinds)
    assert (Path(path) / "model.safetensors").is_file() and Path(path).is_relative_to(tmp_path / "state")


def test_a_script_without_a_guard_says_what_is_missing(tmp_path: Path) -> None:
    done = run(tmp_path, UNGUARDED)
    assert done.returncode != 0
    assert "if __name__ ==" in done.stderr.splitlines()[-1]
