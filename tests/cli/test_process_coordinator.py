"""A coordinator that cannot start says why, once, and asks not to be started again."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import msgspec
import pytest
from tests.processes import running

from medley.cli.process_coordinator import _opened
from medley.protocol.errors import UserError
from medley.runtimes.coordinator import CoordinatorOptions
from medley.store.eventlog import Entry, EventLog


def spoil(directory: Path) -> None:
    log = EventLog.open(f"sqlite:///{directory / 'events.db'}")
    log.acquire_term("the test")
    log.append([Entry("job/a", "HeldoutMeasured", b'{"loss": null}')])
    log.close()


def test_a_record_that_cannot_be_read_is_a_persons_affair(tmp_path: Path) -> None:
    spoil(tmp_path)
    with pytest.raises(UserError, match="HeldoutMeasured"):
        _opened(CoordinatorOptions(tmp_path))


def test_its_process_ends_with_one_sentence_and_status_2(tmp_path: Path) -> None:
    spoil(tmp_path)
    options = tmp_path / "options.json"
    options.write_bytes(msgspec.json.encode(CoordinatorOptions(tmp_path), enc_hook=str))
    command = [sys.executable, "-m", "medley.cli.process_coordinator", str(options)]
    # its standard input stays open: it would end with whoever holds the other end
    with running(command, speaks=False, complains=True) as process:
        assert process.stderr is not None
        said = process.stderr.read()
        assert process.wait(60) == 2
    assert "Traceback" not in said
    assert len(said.strip().splitlines()) == 1


def test_a_page_port_in_use_names_its_own_option(tmp_path: Path) -> None:
    from medley.serving.server import bind

    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(UserError, match="--http-port 0"):
        bind("127.0.0.1", taken.getsockname()[1], "--http-port")
