"""What emulating a link costs: the relay's speed, its processor time for each byte, and how exactly it is late.

Prints one line of JSON. Both ends and the relay are processes of their own, on loopback, interleaved with a direct
connection: `ratio_unlimited` is the relay's bytes per second over direct ones (an upper bound of what it can emulate;
without a network no relay exists). `late_ms` is the median of what a smallest request takes beyond the 20 ms that were
asked for; `cpu_s_per_gb` the processor time of the relay.

    python bench/shaping.py [--mib 64] [--rounds 5] [--out FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import multiprocessing
import os
import socket
import statistics
import sys
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.fleet.exchange import ask, dial, serve
from tests.transports.shaping_setup import OneLink

from medley.protocol.conditions import Conditions
from medley.runtimes.clock import SystemClock
from medley.transports.shaping import Front

MIB = 1024 * 1024
ASKED_MS = 20.0
PINGS = 100


def relay(conditions: Conditions, target: int, said: Connection) -> None:
    """A front in a process of its own; it says its port, and its processor time whenever it is asked."""
    front = Front("127.0.0.1", 0, ("127.0.0.1", target), OneLink(conditions).connection, SystemClock())
    said.send(front.port)

    def answer() -> None:
        with contextlib.suppress(EOFError):
            while said.recv():
                said.send(sum(os.times()[:2]))

    threading.Thread(target=answer, daemon=True).start()
    asyncio.run(front.run())


def server(said: Connection) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        said.send(listener.getsockname()[1])
        serve(listener)


def started(*arguments: object) -> tuple[int, Connection, multiprocessing.Process]:
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    work = relay if len(arguments) else server
    process = multiprocessing.get_context("spawn").Process(target=work, args=(*arguments, theirs), daemon=True)
    process.start()
    return ours.recv(), ours, process  # type: ignore[return-value]


def bytes_per_s(port: int, nbytes: int) -> float:
    with dial("127.0.0.1", port, "") as connection:
        ask(connection, 1, 1)
        began = time.perf_counter()
        ask(connection, nbytes, nbytes)
        return 2 * nbytes / (time.perf_counter() - began)


def late_ms(port: int) -> float:
    found = []
    with dial("127.0.0.1", port, "") as connection:
        for _ in range(PINGS):
            began = time.perf_counter()
            ask(connection, 1, 1)
            found.append((time.perf_counter() - began) * 1000 - ASKED_MS)
    return statistics.median(found)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--mib", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    wanted = parser.parse_args()
    target, _, serving = started()
    unlimited, spent, first = started(Conditions(), target)
    slow, _, second = started(Conditions(rtt_ms=ASKED_MS), target)
    ratios, rates, cpu = [], [], []
    for _ in range(wanted.rounds):
        direct = bytes_per_s(target, wanted.mib * MIB)
        spent.send(True)
        before = spent.recv()
        through = bytes_per_s(unlimited, wanted.mib * MIB)
        spent.send(True)
        cpu.append((spent.recv() - before) / (2 * wanted.mib * MIB / 1e9))
        ratios.append(through / direct)
        rates.append(through)
    line = json.dumps(
        {
            "bench": "shaping",
            "ratio_unlimited": round(statistics.median(ratios), 4),
            "relay_bytes_per_s": round(statistics.median(rates)),
            "cpu_s_per_gb": round(statistics.median(cpu), 3),
            "late_ms": round(late_ms(slow), 3),
        }
    )
    print(line)
    if wanted.out is not None:
        wanted.out.write_text(line + "\n")
    for process in (first, second, serving):
        process.kill()


if __name__ == "__main__":
    main()
