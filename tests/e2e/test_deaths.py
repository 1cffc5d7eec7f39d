"""Every process of a pool is killed while it trains; the job ends by itself and counted each sample once."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest
from bench.killing import family, kill
from tests.e2e.house import House, house, proof

from medley.engines.proof import miscounted

SAMPLES = 4096
HARMLESS = ("worker-1", "coordinator", "worker-2-engine", "vault")
SHARDS = ("shard-1-engine", "shard-2")


def proven(it: House) -> None:
    """Done, and exactly once each, by the ledger and by the parameters."""
    seen = it.until_over()
    assert seen["state"] == "done", seen
    assert (seen["samples"], seen["doubled"], seen["missing"]) == (seen["total"], 0, 0)
    assert miscounted(it.directory / "exports" / it.job) == (0, 0)


@pytest.mark.timeout(400)
def test_any_process_may_die_and_every_sample_counts_once(tmp_path: Path) -> None:
    with house(tmp_path / "pool") as it:
        it.submit(proof(SAMPLES, step_ms=60))
        it.until_version(2)
        for name in HARMLESS:
            it.kill(name)
            it.until_moved()
        assert it.look()["rollbacks"] == 0, "no shard died, so nothing that was committed may be lost"
        for name in SHARDS:
            it.kill(name)
            it.until_moved()
        proven(it)
        assert it.look()["rollbacks"] >= 1, "two shards died without a backup"


@pytest.mark.timeout(300)
def test_the_watchdog_dies_and_a_new_one_goes_on(tmp_path: Path) -> None:
    with house(tmp_path / "pool", workers=2, shard_nodes=1) as it:
        it.submit(proof(2048, step_ms=60) | {"placement": {"shards": 1, "block_elements": 1024, "encrypt": False}})
        it.until_version(3)
        everyone = family(it.pool.pid)
        kill(it.pool.pid)
        it.pool.stop()
        _, left = psutil.wait_procs(everyone, timeout=20)
        assert not left, "they should have noticed that their watchdog is gone"
        it.start()
        proven(it)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_with_backups_a_shard_dies_without_a_step_back(tmp_path: Path) -> None:
    spec = proof(SAMPLES, step_ms=60)
    spec["placement"]["replication"] = 2
    with house(tmp_path / "pool", shard_nodes=4) as it:
        it.submit(spec)
        it.until_version(3)
        for name in ("shard-1-engine", "shard-3"):
            it.kill(name)
            it.until_moved()
        proven(it)
        assert it.look()["rollbacks"] == 0
