"""What a hop of a pipeline adds over loopback, software only: one token's hidden states from the compute thread of one
process to the compute thread of another, through the stage's own words, inbox and posts. No model, no arithmetic.

`hop_ms`: half of a round trip, where both processes do the same: post, receive, unpack, wake the compute thread, pack.
`raw_zmq_ms` and `socket_ms`: the same bytes, echoed by bare pyzmq and by bare TCP, in the same rounds: what the machine
needs at least to wake whoever waits. `p90` and `p99` of all hops. One line of JSON:

    python bench/hop.py [--nbytes 4096] [--hops 1000] [--rounds 5] [--out FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import socket
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import zmq

from medley.protocol.messages import Address
from medley.protocol.stages.events import Arrived
from medley.protocol.stages.words import Pass, Row
from medley.runtimes.children.plane import NoObjects, encode_key
from medley.runtimes.children.stage_inbox import Inbox, Posted, Sender
from medley.transports.tensors import Curve, TensorPlane

WARM_UP = 100


class Stage:
    """A plane on an event loop of its own, beside a compute thread: whoever calls `take` and `post`."""

    def __init__(self, identity: Curve | None, admitted: bytes | None) -> None:
        self._inbox, self._send = Inbox(), Sender(Counter())
        self._opened, self._over = threading.Event(), asyncio.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run(identity, admitted)))
        self._thread.start()
        self._opened.wait()

    async def _run(self, identity: Curve | None, admitted: bytes | None) -> None:
        self._loop = asyncio.get_running_loop()
        posted = Posted(self._inbox, self._send, lambda: 0, Counter())
        async with await TensorPlane.open(
            "127.0.0.1", identity=identity, allow=lambda key: key == admitted, handler=NoObjects(), posted=posted
        ) as plane:
            self._send.plane = plane
            self.address = Address(plane.endpoint, encode_key(plane.public_key))
            self._opened.set()
            await self._over.wait()

    def post(self, to: Address, word: Pass, body: Any) -> None:
        assert self._send.post(to, word, (body,))

    def take(self) -> tuple[Pass, memoryview]:
        event = self._inbox.take(None)
        assert isinstance(event, Arrived)
        assert isinstance(event.word, Pass)
        return event.word, event.body

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join()


# -- contenders: each `hop()` is one round trip -----------------------------------------------------------------------


def far_stage(pipe: Connection, nbytes: int, own: Curve | None, other: bytes | None) -> None:
    stage = Stage(own, other)
    pipe.send(stage.address)
    front = pipe.recv()
    while True:
        word, body = stage.take()
        if not word.place:
            break
        stage.post(front, replace(word, place=word.place + 1, spent_ns=(*word.spent_ns, 1)), body)
    stage.close()


class Hops:
    def __init__(self, pipe: Connection, far: Address, nbytes: int, own: Curve | None, other: bytes | None) -> None:
        self._stage, self._far, self._body = Stage(own, other), far, os.urandom(nbytes)
        pipe.send(self._stage.address)
        self._word = Pass(1, 1, 1, (Row(1, 100, 1, 1),), (), (), "bf16", nbytes // 2, (1,))

    def hop(self) -> None:
        self._stage.post(self._far, self._word, self._body)
        self._stage.take()

    def close(self) -> None:
        self._stage.post(self._far, replace(self._word, place=0), self._body)
        self._stage.close()


def far_zmq(pipe: Connection, nbytes: int) -> None:
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        pipe.send(router.bind_to_random_port("tcp://127.0.0.1"))
        pipe.recv()
        while len(parts := router.recv_multipart(copy=False)) == 2:
            router.send_multipart(parts)


class Zmq:
    def __init__(self, pipe: Connection, far: int, nbytes: int) -> None:
        self._context, self._body = zmq.Context(), os.urandom(nbytes)
        self._dealer = self._context.socket(zmq.DEALER)
        self._dealer.connect(f"tcp://127.0.0.1:{far}")
        pipe.send(None)

    def hop(self) -> None:
        self._dealer.send(self._body)
        self._dealer.recv(copy=False)

    def close(self) -> None:
        self._dealer.send_multipart([b"", b""])
        self._dealer.close()
        self._context.term()


def far_socket(pipe: Connection, nbytes: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        pipe.send(server.getsockname()[1])
        pipe.recv()
        near, _ = server.accept()
        with near:
            near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while content := near.recv(nbytes, socket.MSG_WAITALL):
                near.sendall(content)


class Socket:
    def __init__(self, pipe: Connection, far: int, nbytes: int) -> None:
        pipe.send(None)
        self._socket, self._body = socket.create_connection(("127.0.0.1", far)), os.urandom(nbytes)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def hop(self) -> None:
        self._socket.sendall(self._body)
        self._socket.recv(len(self._body), socket.MSG_WAITALL)

    def close(self) -> None:
        self._socket.close()


# -- measuring --------------------------------------------------------------------------------------------------------


class Contender:
    """The far side in a process of its own, the near one here."""

    def __init__(self, near: Any, far: Any, nbytes: int, near_args: tuple[Any, ...], far_args: tuple[Any, ...]) -> None:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        self._process = context.Process(target=far, args=(theirs, nbytes, *far_args))
        self._process.start()
        self._near = near(ours, ours.recv(), nbytes, *near_args)
        self.seen_ms: list[float] = []
        self.medians_ms: list[float] = []
        timed(self._near.hop, WARM_UP)

    def run(self, hops: int) -> None:
        seen = timed(self._near.hop, hops)
        self.seen_ms += seen
        self.medians_ms.append(statistics.median(seen))

    def stop(self) -> None:
        self._near.close()
        self._process.join()


def timed(hop: Callable[[], None], times: int) -> list[float]:
    """Milliseconds of one way."""
    seen = []
    for _ in range(times):
        began = time.perf_counter()
        hop()
        seen.append((time.perf_counter() - began) * 1e3 / 2)
    return seen


def measure(nbytes: int, hops: int, rounds: int) -> dict[str, Any]:
    ours, theirs = Curve.generate(), Curve.generate()
    contenders = {
        "plain": Contender(Hops, far_stage, nbytes, (None, None), (None, None)),
        "curve": Contender(Hops, far_stage, nbytes, (ours, theirs.public_key), (theirs, ours.public_key)),
        "raw_zmq": Contender(Zmq, far_zmq, nbytes, (), ()),
        "socket": Contender(Socket, far_socket, nbytes, (), ()),
    }
    for _ in range(rounds):
        for contender in contenders.values():
            contender.run(hops)
    for contender in contenders.values():
        contender.stop()
    return {name: summary(contender) for name, contender in contenders.items()}


def summary(contender: Contender) -> dict[str, float]:
    cuts = statistics.quantiles(contender.seen_ms, n=100)
    return {
        "ms": round(statistics.median(contender.medians_ms), 4),
        "best_round_ms": round(min(contender.medians_ms), 4),
        "p90": round(cuts[89], 4),
        "p99": round(cuts[98], 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="What a hop adds over loopback, software only.")
    parser.add_argument("--nbytes", type=int, default=4096, help="hidden states of a token (default 4096)")
    parser.add_argument("--hops", type=int, default=1000, help="round trips a round (default 1000)")
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds whose median counts (default 5)")
    parser.add_argument("--out", help="also write the line to this file")
    options = parser.parse_args()
    seen = measure(options.nbytes, options.hops, options.rounds)
    line = json.dumps(
        {
            "figure": "hop",
            "nbytes": options.nbytes,
            "hop_ms": seen["curve"]["ms"],
            "plain_ms": seen["plain"]["ms"],
            "raw_zmq_ms": seen["raw_zmq"]["ms"],
            "socket_ms": seen["socket"]["ms"],
            "best_known": None,
            "bar": 0.3,
            "rounds": seen,
        }
    )
    print(line)
    if options.out:
        Path(options.out).write_text(line + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
