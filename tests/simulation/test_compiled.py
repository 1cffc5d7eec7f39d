"""What MEDLEY_COMPILED=1 compiles lives the histories of the sources beside these tests."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from tests.simulation.worlds import digests

from medley.runtimes.simulated import kernel

ROOT = Path(__file__).parents[2]
SEEDS = range(40, 52)


def lived(ending: str, *first: Path) -> str:
    """The same worlds in a process that imports medley from the first of these directories."""
    code = (
        f"from medley.runtimes.simulated import kernel; assert kernel.__file__.endswith({ending!r}), kernel.__file__\n"
        f"from tests.simulation.worlds import digests; print(digests({SEEDS!r}))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*map(str, first), str(ROOT), *sys.path])}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=environment, cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()


@pytest.mark.skipif(kernel.__file__.endswith(".py"), reason="this install is not compiled (MEDLEY_COMPILED=1)")
def test_compiled_worlds_are_the_interpreted_ones() -> None:
    assert digests(SEEDS) == lived(".py", ROOT / "src")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler here")
def test_a_compiled_wheel_lives_the_same_histories(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", str(tmp_path), str(ROOT)]
    subprocess.run(command, env={**os.environ, "MEDLEY_COMPILED": "1"}, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as packed:
        packed.extractall(site)
    assert lived(".so", site) == lived(".py", ROOT / "src")
