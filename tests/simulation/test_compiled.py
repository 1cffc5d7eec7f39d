"""A compiled install (MEDLEY_COMPILED=1) lives the histories of the sources beside these tests."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.simulation.worlds import digests

from medley.runtimes.simulated import kernel

ROOT = Path(__file__).parents[2]
SEEDS = range(40, 52)


def interpreted() -> str:
    """The same worlds in a process that imports this checkout's sources."""
    code = (
        "from medley.runtimes.simulated import kernel; assert kernel.__file__.endswith('.py')\n"
        f"from tests.simulation.worlds import digests; print(digests({SEEDS!r}))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT), *sys.path])}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=environment, cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()


@pytest.mark.skipif(kernel.__file__.endswith(".py"), reason="this install is not compiled (MEDLEY_COMPILED=1)")
def test_compiled_worlds_are_the_interpreted_ones() -> None:
    assert digests(SEEDS) == interpreted()
