"""The system kills an engine for its memory: the next one takes half as much at a time, and nothing is lost."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from bench.killing import processes
from tests.e2e.house import house, proof
from tests.e2e.test_deaths import proven

V1, V2 = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")
LIMIT_NBYTES = 900 << 20


@contextlib.contextmanager
def limited(nbytes: int) -> Iterator[Path]:
    """A control group with so much memory. Skips where none can be made."""
    root, knob = (V1, "memory.limit_in_bytes") if V1.is_dir() else (V2, "memory.max")
    group = root / f"medley-test-{os.getpid()}"
    try:
        group.mkdir()
        (group / knob).write_text(str(nbytes))
    except OSError:
        with contextlib.suppress(OSError):
            group.rmdir()
        pytest.skip("no control group can be made here")
    try:
        yield group
    finally:
        for pid in (group / "cgroup.procs").read_text().split():
            with contextlib.suppress(OSError):
                (root / "cgroup.procs").write_text(pid)
        with contextlib.suppress(OSError):
            group.rmdir()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_kill_for_memory_halves_the_micro_batch_and_the_job_carries_on(tmp_path: Path, repository: Path) -> None:
    spec = proof(256, batch_samples=32) | {
        "task": "tests.e2e.hungry:Hungry",
        "task_options": {"samples": 256, "mib": 64, "micro_batch": 16},
        "placement": {"shards": 1, "block_elements": 1024, "encrypt": False},
    }
    paths = os.pathsep.join([str(repository), os.environ.get("PYTHONPATH", "")])
    with house(tmp_path / "pool", workers=1, shard_nodes=1, environment={"PYTHONPATH": paths}) as it:
        with limited(LIMIT_NBYTES) as group:
            (group / "cgroup.procs").write_text(str(processes(it.pool.pid)["worker-1"]))
            it.submit(spec)
            proven(it)
            it.pool.stop()
        said = (it.directory / "nodes" / "worker-1" / "node.jsonl").read_text()
        assert "killed by the system for memory" in said
        assert "it starts again with micro-batches of 8" in said
