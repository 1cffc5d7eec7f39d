"""The example of a split model runs as its first lines say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_example_is_answered_over_two_processes_and_ends(repository: Path) -> None:
    command = [sys.executable, "examples/serve_split.py", "--stages", "2"]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    assert "tiny answers at http://127.0.0.1:" in done.stdout
    assert done.stdout.endswith("the same seed twice: the same words\n")
