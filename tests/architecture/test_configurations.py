"""Every configuration we ship loads."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path

import pytest

from .source import ROOT

SHIPPED = sorted(path for folder in ("examples", "deploy") for path in (ROOT / folder).rglob("*.yaml"))


@pytest.mark.skipif(not (ROOT / "src/medley/jobs/load.py").is_file(), reason="no loader yet")
@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_shipped_job_loads(path: Path) -> None:
    load_job = importlib.import_module("medley.jobs.load").load_job
    assert load_job(path) is not None
