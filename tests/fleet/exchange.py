"""What is measured on links: clients that fetch and deliver updates at one server, in rounds with a barrier.

One protocol, run over kernel TCP through the delay line, over our shaper, or over nothing. A request is two numbers,
(bytes wanted, bytes that follow); the server answers with as many bytes as were wanted, at least one.
`python exchange.py serve HOST PORT` and `python exchange.py rounds HOST PORT ROUNDS PULL PUSH SOURCE...`, which prints
the seconds of each round as JSON.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
import sys
import threading
import time
from collections.abc import Sequence

REQUEST = struct.Struct("<QQ")
PIECE_NBYTES = 64 * 1024
CUBIC = b"cubic"  # what most machines run; this one may not


def tuned(connection: socket.socket) -> socket.socket:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if hasattr(socket, "TCP_CONGESTION"):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, CUBIC)
    return connection


def take(connection: socket.socket, nbytes: int) -> None:
    while nbytes:
        piece = connection.recv(min(nbytes, PIECE_NBYTES))
        if not piece:
            raise ConnectionError("the other end is gone")
        nbytes -= len(piece)


def exactly(connection: socket.socket, nbytes: int) -> bytes:
    """The next bytes; fewer when the other end is gone."""
    found = b""
    while len(found) < nbytes and (piece := connection.recv(nbytes - len(found))):
        found += piece
    return found


def give(connection: socket.socket, nbytes: int) -> None:
    piece = bytes(PIECE_NBYTES)
    while nbytes:
        sent = connection.send(piece[: min(nbytes, PIECE_NBYTES)])
        nbytes -= sent


def serve(listener: socket.socket) -> None:
    while True:
        connection = tuned(listener.accept()[0])
        threading.Thread(target=_answer, args=(connection,), daemon=True).start()


def _answer(connection: socket.socket) -> None:
    with connection:
        while len(head := exactly(connection, REQUEST.size)) == REQUEST.size:
            wanted, follows = REQUEST.unpack(head)
            take(connection, follows)
            give(connection, max(1, wanted))


def ask(connection: socket.socket, wanted: int, follows: int) -> None:
    """One request, all of its bytes, and the whole answer."""
    connection.sendall(REQUEST.pack(wanted, follows))
    give(connection, follows)
    take(connection, max(1, wanted))


def rounds(connections: Sequence[socket.socket], count: int, pull: int, push: int) -> list[float]:
    """Seconds of each round: every client pulls, then pushes; the round ends with the last of them."""
    barrier = threading.Barrier(len(connections) + 1)

    def work(connection: socket.socket) -> None:
        for _ in range(count):
            barrier.wait()
            ask(connection, pull, 0)
            ask(connection, 1, push)
            barrier.wait()

    for connection in connections:
        threading.Thread(target=work, args=(connection,), daemon=True).start()
    seconds = []
    for _ in range(count):
        barrier.wait()
        began = time.monotonic()
        barrier.wait()
        seconds.append(time.monotonic() - began)
    return seconds


def dial(host: str, port: int, source: str) -> socket.socket:
    connection = tuned(socket.socket())
    if source:
        connection.bind((source, 0))
    connection.connect((host, port))
    return connection


def urgent() -> None:
    """Be served at once on a busy machine, where one may: else its other work would be measured as the network's."""
    with contextlib.suppress(OSError, AttributeError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(5))


def main() -> None:
    urgent()
    host, port = sys.argv[2], int(sys.argv[3])
    if sys.argv[1] == "serve":
        listener = socket.create_server((host, port), backlog=64)
        tuned(listener)
        print("ready", flush=True)
        serve(listener)
    count, pull, push = (int(word) for word in sys.argv[4:7])
    connections = [dial(host, port, source) for source in sys.argv[7:]]
    print(json.dumps(rounds(connections, count, pull, push)))


if __name__ == "__main__":
    main()
