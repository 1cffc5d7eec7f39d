"""What every test shares: where the repository is, one compute thread, and no network by accident."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# Before torch or tokenizers are imported: small tensors gain nothing from more threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# A test that needs a hub must say so; a typo in a model name must not become a download.
os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout that holds these tests."""
    return Path(__file__).resolve().parent.parent


# A busy machine is no counterexample: tests assert behaviour, never timings.
settings.register_profile("medley", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("medley")
