"""What is saved stays saved: an orderly stop, a damaged checkpoint, a full disk."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.e2e.house import LONG_S, House, house, proof
from tests.e2e.test_deaths import proven
from tests.waiting import until

from medley.protocol.errors import MedleyError
from medley.store.checkpoints import CheckpointStore

SMALL = {"placement": {"shards": 1, "block_elements": 1024, "encrypt": False}}


def newest(it: House) -> tuple[int, list[str]]:
    """Version of the newest good checkpoint, and what was said about others."""
    manifest, problems = CheckpointStore(it.directory / "checkpoints").latest_good(it.job)
    assert manifest is not None
    return manifest.version, problems


@pytest.mark.timeout(300)
def test_an_orderly_stop_saves_the_last_commit_and_a_later_start_goes_on(tmp_path: Path) -> None:
    spec = proof(1536, step_ms=60) | SMALL | {"checkpoint": {"every_s": 3600.0}}
    with house(tmp_path / "pool", workers=2, shard_nodes=1) as it:
        it.submit(spec)
        it.until_version(4)
        it.pool.stop()
        state = it.restored()
        assert state.version >= 4
        assert newest(it) == (state.version, [])
        it.start()
        proven(it)


@pytest.mark.timeout(300)
def test_ctrl_c_in_a_terminal_saves_as_an_orderly_stop_does(tmp_path: Path) -> None:
    """A terminal signals the whole process group; the pool's watchdog leads one of its own."""
    spec = proof(1536, step_ms=60) | SMALL | {"checkpoint": {"every_s": 3600.0}}
    with house(tmp_path / "pool", workers=2, shard_nodes=1) as it:
        it.submit(spec)
        it.until_version(4)
        os.killpg(it.pool.pid, signal.SIGINT)
        until(lambda: not it.alive(), deadline_s=LONG_S, what="the end of the pool")
        it.pool.stop()
        state = it.restored()
        assert state.version >= 4
        assert newest(it) == (state.version, [])


@pytest.mark.timeout(300)
def test_a_damaged_checkpoint_is_reported_and_the_one_before_used(tmp_path: Path) -> None:
    spec = proof(1536, step_ms=60) | SMALL | {"checkpoint": {"every_s": 3600.0, "every_commits": 3, "keep": 2}}
    with house(tmp_path / "pool", workers=2, shard_nodes=1) as it:
        it.submit(spec)
        it.until_version(8)
        it.pool.stop()
        good, _ = newest(it)
        _flip_a_byte(next((it.directory / "checkpoints" / it.job / f"checkpoint-{good:010}").glob("*.safetensors")))
        assert newest(it)[0] < good
        it.start()
        proven(it)
        said = [text for text in it.decisions() if "cannot be loaded" in text]
        assert any(f"checkpoint {good} cannot be loaded" in text and "digest" in text for text in said), said


def _flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@contextlib.contextmanager
def small_disk(place: Path, mib: int) -> Iterator[Path]:
    """A file system of this size. Skips where none can be mounted."""
    place.mkdir()
    mount = shutil.which("mount")
    if mount is None or os.geteuid() != 0:
        pytest.skip("only root mounts a small disk")
    done = subprocess.run([mount, "-t", "tmpfs", "-o", f"size={mib}m", "tmpfs", str(place)], check=False)
    if done.returncode:
        pytest.skip("no small disk can be mounted here")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_full_disk_stops_with_a_sentence_and_earlier_checkpoints_stay_good(tmp_path: Path) -> None:
    spec = proof(4096, step_ms=60) | {"checkpoint": {"every_s": 1.0, "every_commits": 4}}
    with small_disk(tmp_path / "disk", 48) as disk, house(disk / "pool", workers=2, shard_nodes=1) as it:
        it.submit(spec)
        it.until_version(6)
        fill = disk / "fill"
        with contextlib.suppress(OSError), fill.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(1 << 16))
        until(lambda: _stopped(it), deadline_s=LONG_S, what="a stop because of the disk")
        said = " ".join(p.read_text() for p in (it.directory / "logs").glob("*.err"))
        reason = it.look().get("reason", "") if it.pool.pid else ""
        assert "no room" in (said + reason).lower() or "full" in (said + reason).lower(), (said, reason)
        assert "Traceback" not in said
        it.pool.stop()
        _, problems = newest(it)
        assert not problems
        fill.unlink()
        it.start()
        if it.look()["state"] == "failed":
            it.pool.operator.ask("resume", {"job": it.job})
        proven(it)


def _stopped(it: House) -> bool:
    """The job says that it failed, or the pool that it cannot go on."""
    with contextlib.suppress(MedleyError):
        return it.look().get("state") == "failed" or not it.alive()
    return True
