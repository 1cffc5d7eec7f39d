"""Kernel TCP through the delay line against the shaper and the simulator: a small part of `bench/wan.py`.

Real time and few rounds, so what is asserted is coarse; the bench asserts nothing and measures the whole.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from bench.wan import Exchange, kernel, shaper, simulator
from tests.fleet import exchange
from tests.fleet.reference import HERE, possible, reference
from tests.transports.shaping_setup import OneLink

from medley.protocol.conditions import PRESETS, Conditions
from medley.runtimes.clock import SystemClock
from medley.transports.shaping import Front

pytestmark = [
    pytest.mark.skipif(not possible(), reason="TUN devices and network namespaces need root on Linux"),
    pytest.mark.timeout(300),
]
SHAPER = """
import asyncio, sys
from tests.fleet.test_reference import front
asyncio.run(front(int(sys.argv[1])))
"""


def test_the_delay_line_is_as_slow_as_it_says(tmp_path: Path) -> None:
    with reference(tmp_path, Conditions(rtt_ms=60)) as line:
        seconds = line.rounds(2, 5, 1, 1)
    assert 0.12 <= statistics.median(seconds) < 0.2  # two requests a round


def test_the_delay_line_carries_no_more_than_its_rate(tmp_path: Path) -> None:
    with reference(tmp_path, Conditions(rtt_ms=10, up_bytes_per_s=250_000, down_bytes_per_s=250_000)) as line:
        (seconds,) = line.rounds(1, 1, 250_000, 1)
    assert 1.0 <= seconds < 1.6


@pytest.mark.slow
def test_models_take_the_kernels_time_for_rounds_over_a_cellular_link() -> None:
    wanted = Exchange("cellular", 2, 64 * 1024, 64 * 1024, 16)
    real = statistics.mean(kernel(wanted))
    for model in (shaper, simulator):
        modelled = statistics.mean(second for seed in range(8) for second in model(wanted, seed))
        assert 0.6 < modelled / real < 1.6, model


@pytest.mark.slow
def test_real_sockets_at_the_ends_change_nothing() -> None:
    """The same exchange through the relay of a node in a process of its own, in real time."""
    wanted = Exchange("cellular", 1, 64 * 1024, 64 * 1024, 16)
    with _shaped_server() as port:
        connection = exchange.dial("127.0.0.1", port, "")
        real = statistics.mean(exchange.rounds([connection], wanted.rounds, wanted.pull_nbytes, wanted.push_nbytes))
        connection.close()
    modelled = statistics.mean(second for seed in range(8) for second in shaper(wanted, seed))
    assert 0.6 < real / modelled < 1.6


@contextmanager
def _shaped_server() -> Iterator[int]:
    """A server of the exchange behind a front with a cellular link; the port of the front."""
    root = str(HERE.parents[1])
    with exchange.socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=_serve, args=(listener,), daemon=True).start()
        command = [sys.executable, "-c", SHAPER, str(listener.getsockname()[1])]
        environment = {**os.environ, "PYTHONPATH": root}
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, cwd=root) as process:
            assert process.stdout is not None
            try:
                yield int(process.stdout.readline())
            finally:
                process.kill()


def _serve(listener: exchange.socket.socket) -> None:
    with suppress(OSError):
        exchange.serve(listener)


async def front(target: int) -> None:
    """Serve one front, after saying its port."""
    # What leaves the client is what comes to the machine behind the front.
    link = OneLink(PRESETS["cellular"])
    shaped = Front("127.0.0.1", 0, ("127.0.0.1", target), link.connection, SystemClock())
    print(shaped.port, flush=True)
    await shaped.run()
