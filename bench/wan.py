"""Bad links: the shaper of real sockets and the simulator's network against kernel TCP through a TUN delay line.

Prints one line of JSON. Root on Linux, network namespaces and /dev/net/tun are needed; nothing leaves the namespaces:

    python bench/wan.py [--presets cellular,good] [--workers 2,4,8] [--rounds 6] [--kib 128] [--out FILE]

One exchange, three times: each worker, behind a link of its own, fetches an update of `--kib` from one server and sends
one of that size back; the round ends with the last of them. `shaper_error` and `simulated_error` are the means, over
presets and numbers of workers, of |mean round time - kernel's| / kernel's. `ping` and `transfers` do the same for one
worker's smallest request and for 1 MiB and 8 MiB (where a preset's goodput brings that in a minute). The shaper's pipes
run in virtual time between ends in memory, so they and the simulator take as many rounds as make their own means
certain; the kernel takes real ones, and `kernel_standard_error` says what they leave open. (That real sockets at the
ends of the pipes change nothing is a test: tests/fleet/test_reference.py.)
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import struct
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.fleet.reference import possible, reference
from tests.transports.shaping_setup import OneLink, VirtualTimer, virtually

from medley.concurrency import TaskGroup
from medley.protocol.conditions import PRESETS, Conditions, goodput_bytes_per_s
from medley.runtimes.simulated.kernel import Kernel
from medley.runtimes.simulated.network import Network
from medley.transports.shaping import Limits
from medley.transports.shaping.pipe import Pipe

KIB = 1024
REQUEST = struct.Struct("<QQ")
MODELLED_ROUNDS = 12  # of each seed
SEEDS = range(12)
LONG_S = 60.0
QUICK = ("good", "straggler")  # so many packets a second that only one runs at a time
SHAPED = tuple(name for name in PRESETS if name != "none")


@dataclass(frozen=True, slots=True)
class Exchange:
    preset: str
    workers: int
    pull_nbytes: int
    push_nbytes: int
    rounds: int


@dataclass(frozen=True, slots=True)
class Case:
    """Mean seconds of a round, three times."""

    preset: str
    workers: int
    pull_nbytes: int
    kernel_s: float
    kernel_standard_error: float
    shaper_s: float
    simulated_s: float

    @property
    def shaper_error(self) -> float:
        return abs(self.shaper_s - self.kernel_s) / self.kernel_s

    @property
    def simulated_error(self) -> float:
        return abs(self.simulated_s - self.kernel_s) / self.kernel_s


# -- the kernel -------------------------------------------------------------------------------------------------------


def kernel(wanted: Exchange, seed: int = 1) -> list[float]:
    with (
        tempfile.TemporaryDirectory() as room,
        reference(Path(room), PRESETS[wanted.preset], seed, wanted.workers) as line,
    ):
        return line.rounds(wanted.workers, wanted.rounds, wanted.pull_nbytes, wanted.push_nbytes)


# -- the shaper: its pipes, in virtual time ---------------------------------------------------------------------------


class Wire:
    """A connection's end in memory: what a pipe writes, a reader of the other program reads."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self._reader = reader

    def writelines(self, pieces: list[memoryview]) -> None:
        for piece in pieces:
            self._reader.feed_data(piece)

    async def drain(self) -> None:
        return

    def can_write_eof(self) -> bool:
        return False


@dataclass(slots=True)
class Worker:
    """What one worker and the server hold of their connection. Readers are what each says and what each hears."""

    says: asyncio.StreamReader
    hears: asyncio.StreamReader
    server_says: asyncio.StreamReader
    server_hears: asyncio.StreamReader


def shaper(wanted: Exchange, seed: int) -> list[float]:
    return virtually(_shaped(PRESETS[wanted.preset], wanted, seed))


async def _shaped(conditions: Conditions, wanted: Exchange, seed: int) -> list[float]:
    seconds = []
    async with TaskGroup() as tasks:
        running: list[asyncio.Task[None]] = []
        workers = [_connected(conditions, seed * 1000 + number, tasks, running) for number in range(wanted.workers)]
        running += [tasks.create_task(_serve(worker)) for worker in workers]
        for _ in range(wanted.rounds):
            began_s = asyncio.get_running_loop().time()
            async with TaskGroup() as round_:
                for worker in workers:
                    round_.create_task(_round(worker, wanted))
            seconds.append(asyncio.get_running_loop().time() - began_s)
        for task in running:
            task.cancel()
    return seconds


def _connected(
    conditions: Conditions, seed: int, tasks: asyncio.TaskGroup, running: list[asyncio.Task[None]]
) -> Worker:
    link = OneLink(conditions, seed)
    link.phase_s = link.chance.random() * (conditions.up_s + conditions.down_s)
    worker = Worker(*(asyncio.StreamReader() for _ in range(4)))
    up, down = link.connection()
    up.handshake_s(0.0)
    for sender, source, target in ((up, worker.says, worker.server_hears), (down, worker.server_says, worker.hears)):
        pipe = Pipe(sender, VirtualTimer(), Limits(), lambda nbytes: None)
        running.append(tasks.create_task(pipe.run(source, Wire(target))))  # type: ignore[arg-type]
    return worker


async def _serve(worker: Worker) -> None:
    while True:
        wanted, follows = REQUEST.unpack(await worker.server_hears.readexactly(REQUEST.size))
        await _take(worker.server_hears, follows)
        worker.server_says.feed_data(bytes(max(1, wanted)))


async def _round(worker: Worker, wanted: Exchange) -> None:
    for pull, push in ((wanted.pull_nbytes, 0), (1, wanted.push_nbytes)):
        worker.says.feed_data(REQUEST.pack(pull, push) + bytes(push))
        await _take(worker.hears, pull)


async def _take(reader: asyncio.StreamReader, nbytes: int) -> None:
    while nbytes:
        nbytes -= len(await reader.read(min(nbytes, 64 * KIB)))


# -- the simulator ----------------------------------------------------------------------------------------------------


def simulator(wanted: Exchange, seed: int) -> list[float]:
    world = Kernel(seed)
    network = Network(world)
    network.add("server", Conditions())
    workers = [f"worker-{number}" for number in range(wanted.workers)]
    for name in workers:
        network.add(name, PRESETS[wanted.preset])
    return [_simulated_round(world, network, workers, wanted) for _ in range(wanted.rounds)]


def _simulated_round(world: Kernel, network: Network, workers: Sequence[str], wanted: Exchange) -> float:
    """A request of a few bytes there, an update back; an update there, a few bytes back."""
    began_ns, left = world.now, set(workers)

    def begin(name: str) -> None:
        move(name, "server", REQUEST.size, lambda: pull(name))

    def pull(name: str) -> None:
        move("server", name, wanted.pull_nbytes, lambda: push(name))

    def push(name: str) -> None:
        move(name, "server", REQUEST.size + wanted.push_nbytes, lambda: confirm(name))

    def confirm(name: str) -> None:
        move("server", name, 1, lambda: left.remove(name))

    def move(source: str, target: str, nbytes: int, then: Callable[[], None]) -> None:
        network.transfer(
            source, target, nbytes, lambda arrived: then() if arrived else move(source, target, nbytes, then)
        )

    for name in workers:
        begin(name)
    world.run(began_ns + 10**13, lambda: not left)
    return (world.now - began_ns) / 1e9


# -- all three --------------------------------------------------------------------------------------------------------


def compare(wanted: Exchange) -> Case:
    case = _compare(wanted)
    print(case, file=sys.stderr, flush=True)
    return case


def _compare(wanted: Exchange) -> Case:
    real = kernel(wanted)
    modelled = Exchange(
        wanted.preset, wanted.workers, wanted.pull_nbytes, wanted.push_nbytes, min(MODELLED_ROUNDS, 2 * wanted.rounds)
    )
    shaped = [second for seed in SEEDS for second in shaper(modelled, seed)]
    simulated = [second for seed in SEEDS for second in simulator(modelled, seed)]
    error = statistics.stdev(real) / len(real) ** 0.5 if len(real) > 1 else 0.0
    return Case(
        wanted.preset,
        wanted.workers,
        wanted.pull_nbytes,
        round(statistics.mean(real), 4),
        round(error, 4),
        round(statistics.mean(shaped), 4),
        round(statistics.mean(simulated), 4),
    )


def exchanges(presets: Sequence[str], workers: Sequence[int], rounds: int, nbytes: int) -> list[Exchange]:
    return [Exchange(preset, count, nbytes, nbytes, rounds) for preset in presets for count in workers]


def transfers(presets: Sequence[str]) -> list[Exchange]:
    """One worker's smallest request, and objects of 1 MiB and 8 MiB where they come in a minute."""
    found = [Exchange(preset, 1, 1, 1, 60) for preset in presets]
    for preset in presets:
        for nbytes in (KIB * KIB, 8 * KIB * KIB):
            if nbytes / goodput_bytes_per_s(PRESETS[preset]) < LONG_S:
                found.append(Exchange(preset, 1, nbytes, 1, 6))
    return found


def run(wanted: Sequence[Exchange]) -> list[Case]:
    """Slow links beside each other, quick ones one by one."""
    slow = [one for one in wanted if one.preset not in QUICK]
    if not slow:
        return [compare(one) for one in wanted]
    with ThreadPoolExecutor(max(1, len(slow))) as pool:
        cases = list(pool.map(compare, slow))
    return cases + [compare(one) for one in wanted if one.preset in QUICK]


def summary(rounds: Sequence[Case], others: Sequence[Case]) -> dict[str, Any]:
    return {
        "bench": "wan",
        "shaper_error": round(statistics.mean(one.shaper_error for one in rounds), 4),
        "simulated_error": round(statistics.mean(one.simulated_error for one in rounds), 4),
        "rounds": [_shown(one) for one in rounds],
        "transfers": [_shown(one) for one in others],
    }


def _shown(case: Case) -> dict[str, Any]:
    return {
        **asdict(case),
        "shaper_error": round(case.shaper_error, 3),
        "simulated_error": round(case.simulated_error, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--presets", default=",".join(SHAPED))
    parser.add_argument("--workers", default="2,4,8")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--kib", type=int, default=128)
    parser.add_argument("--no-transfers", action="store_true")
    parser.add_argument("--out", type=Path)
    wanted = parser.parse_args()
    if not possible():
        sys.exit("wan: root on Linux with network namespaces and /dev/net/tun is needed")
    presets, workers = wanted.presets.split(","), [int(one) for one in wanted.workers.split(",")]
    rounds = run(exchanges(presets, workers, wanted.rounds, wanted.kib * KIB))
    line = json.dumps(summary(rounds, [] if wanted.no_transfers else run(transfers(presets))))
    print(line)
    if wanted.out is not None:
        wanted.out.write_text(line + "\n")


if __name__ == "__main__":
    main()
