"""Every configuration we ship loads."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path

import pytest

from .source import ROOT

EXPERIMENTS = sorted((ROOT / "examples" / "experiments").glob("*.yaml"))
FOUND = sorted(path for folder in ("examples", "deploy") for path in (ROOT / folder).rglob("*.yaml"))
FLEETS = [ROOT / "examples" / name for name in ("fleet.yaml", "laptop.yaml")]  # of `medley whatif`
SHIPPED = [path for path in FOUND if path not in EXPERIMENTS and path not in FLEETS]


@pytest.mark.skipif(not (ROOT / "src/medley/jobs/load.py").is_file(), reason="no loader yet")
@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_shipped_job_loads(path: Path) -> None:
    load_job = importlib.import_module("medley.jobs.load").load_job
    assert load_job(path) is not None


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.name)
def test_shipped_experiment_loads_with_every_point_of_its_sweep(path: Path) -> None:
    load_experiment = importlib.import_module("medley.jobs.experiments.load").load_experiment
    assert load_experiment(path).points


@pytest.mark.parametrize("path", FLEETS, ids=lambda path: path.name)
def test_shipped_fleet_loads(path: Path) -> None:
    machines = importlib.import_module("medley.jobs.machines")
    size = importlib.import_module("medley.policies.costs").Size(1)
    assert machines.read_fleet(path, lambda device: size).machines
