"""Places to store things in: a private PostgreSQL, a disk of one megabyte, and processes that die on
purpose."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from medley.store.eventlog import EventLog

PROCESS_TIMEOUT_S = 60


def _as_nobody(*command: str) -> None:
    # PostgreSQL refuses to run as root.
    leave_root = ("setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups")
    full = [*leave_root, *command] if os.geteuid() == 0 else list(command)
    subprocess.run(full, check=True, stdout=subprocess.DEVNULL, timeout=PROCESS_TIMEOUT_S, cwd="/")


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """A PostgreSQL of our own on a free port; one for the whole session."""
    pytest.importorskip("psycopg")
    if not shutil.which("initdb") or not shutil.which("pg_ctl"):
        pytest.skip("no PostgreSQL binaries on this machine")
    if os.geteuid() == 0 and not shutil.which("setpriv"):
        pytest.skip("running as root, and no setpriv to leave it")
    # Not below pytest's own folder, which only the user who runs the tests may enter.
    with tempfile.TemporaryDirectory(prefix="medley-postgres-") as room:
        if os.geteuid() == 0:
            shutil.chown(room, "nobody")
        yield from _postgres(Path(room))


def _postgres(room: Path) -> Iterator[str]:
    data = str(room / "data")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c shared_buffers=8MB"
    _as_nobody("initdb", "-D", data, "-U", "medley", "-A", "trust", "--no-sync", "-E", "UTF8")
    _as_nobody("pg_ctl", "-D", data, "-w", "-l", str(room / "log"), "-o", options, "start")
    try:
        yield f"postgresql://medley@127.0.0.1:{port}"
    finally:
        _as_nobody("pg_ctl", "-D", data, "-m", "immediate", "stop")


@pytest.fixture(params=["sqlite", "postgres"])
def log_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an event log that does not exist yet."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'medley.db'}"
    server = request.getfixturevalue("postgres_url")
    import psycopg

    name = f"log_{abs(hash(request.node.nodeid)):x}_{os.getpid()}"
    with psycopg.connect(f"{server}/postgres", autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')
    return f"{server}/{name}"


@pytest.fixture
def open_log(log_url: str) -> Iterator[Callable[[], EventLog]]:
    """Opens handles on one log, and closes them afterwards."""
    logs: list[EventLog] = []

    def opened() -> EventLog:
        logs.append(EventLog.open(log_url))
        return logs[-1]

    yield opened
    for log in logs:
        log.close()


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    room = tmp_path / "tiny"
    room.mkdir()
    mount = shutil.which("mount")
    if mount is None or os.name != "posix" or os.geteuid() != 0:
        pytest.skip("only root can mount a small disk")
    command = [mount, "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(room)]
    if subprocess.run(command, check=False, stderr=subprocess.DEVNULL).returncode != 0:
        pytest.skip("this machine does not allow mounts")
    try:
        yield room
    finally:
        subprocess.run(["umount", "-l", str(room)], check=True)


@pytest.fixture
def die_at(tmp_path: Path) -> Callable[[str, str], None]:
    """`die_at(failpoint, script)` runs the script in a process that must be killed at the failpoint."""

    def run(failpoint: str, script: str) -> None:
        orders = tmp_path / "failpoints"
        orders.mkdir(exist_ok=True)
        (orders / failpoint).touch()
        environment = {**os.environ, "MEDLEY_FAILPOINTS": str(orders)}
        command = [sys.executable, "-c", script]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PROCESS_TIMEOUT_S)
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert not (orders / failpoint).exists()

    return run
