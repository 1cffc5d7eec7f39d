"""A coordinator's relay and nodes with gates, in one process over real gRPC, for the tests of pipes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medley.concurrency import TaskGroup
from medley.protocol.errors import PeerError
from medley.transports.control.contract import Limits as ControlLimits
from medley.transports.control.server import ControlServer
from medley.transports.identity import Authority, Credentials
from medley.transports.tunnel.contract import Limits, Place, Why, pipe_name
from medley.transports.tunnel.gate import Gate
from medley.transports.tunnel.line import Line
from medley.transports.tunnel.relay import Relay

NOW_NS = time.time_ns()
PATIENT = Limits(take_s=20.0, dial_s=20.0, request_s=20.0, grace_s=1.0)  # a busy machine is no failure
_DIALLED: list[asyncio.StreamWriter] = []


@dataclass
class Exchange:
    """A switchboard that knows what it was told."""

    places: dict[str, Place] = field(default_factory=dict)
    gates: dict[str, Gate] = field(default_factory=dict)
    revoked: set[str] = field(default_factory=set)
    told: list[tuple[str, str, Why]] = field(default_factory=list)
    called: list[tuple[str, int, str]] = field(default_factory=list)

    def admitted(self, node: str) -> None:
        if node in self.revoked:
            raise PeerError(f"{node} was revoked")

    def find(self, asker: str, name: str) -> Place:
        if name not in self.places:
            raise PeerError("no engine of this name works with you")
        return self.places[name]

    def call(self, node: str, number: int, name: str) -> bool:
        self.called.append((node, number, name))
        if node not in self.gates:
            return False
        self.gates[node].called(number, name)
        return True

    def piped(self, asker: str, place: Place, why: Why) -> None:
        self.told.append((asker, place.words, why))


@dataclass
class Bench:
    """The coordinator's machine, and nodes that join it."""

    authority: Authority
    exchange: Exchange
    relay: Relay
    server: ControlServer
    limits: Limits
    tasks: Any
    running: list[asyncio.Task[None]] = field(default_factory=list)

    def identity(self, node: str) -> Credentials:
        return self.authority.enrol(node, "node", NOW_NS)

    def line(self, node: str) -> Line:
        identity = self.identity(node)
        return Line(self.server.control_address, lambda: identity, self.limits)

    async def node(self, name: str, **engines: tuple[str, int]) -> Gate:
        """A node whose engines are known to the coordinator; the keys of `engines` are their endpoints."""
        own = {pipe_name(endpoint, b""): where for endpoint, where in engines.items()}
        gate = Gate(self.line(name), own.get, limits=self.limits)
        ready = asyncio.Event()
        self.running.append(self.tasks.create_task(gate.run(ready.set)))
        await ready.wait()
        self.exchange.gates[name] = gate
        for endpoint in engines:
            self.exchange.places[pipe_name(endpoint, b"")] = Place(name, f"{endpoint} of {name}", endpoint)
        return gate


@asynccontextmanager
async def bench(room: Path, limits: Limits = PATIENT) -> AsyncIterator[Bench]:
    authority = Authority.open(room, NOW_NS)
    exchange = Exchange()
    relay = Relay(exchange, limits)
    server = await ControlServer.open(
        host="127.0.0.1",
        control_port=0,
        door_port=0,
        identity=authority.serve("coordinator", ["127.0.0.1"], NOW_NS),
        handler=None,  # type: ignore[arg-type]
        limits=ControlLimits(drain_timeout_s=0.2),
        beside=relay.methods(),
    )
    try:
        async with TaskGroup() as tasks:
            made = Bench(authority, exchange, relay, server, limits, tasks)
            yield made
            for task in made.running:
                task.cancel()
    finally:
        await server.close()
        while _DIALLED:
            _DIALLED.pop().transport.abort()


Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Any]


@asynccontextmanager
async def engine(serve: Serve) -> AsyncIterator[tuple[str, int]]:
    """Something that listens as an engine would."""
    met: list[asyncio.StreamWriter] = []

    async def meet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        met.append(writer)
        await serve(reader, writer)

    server = await asyncio.start_server(meet, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[:2]
    finally:
        server.close()
        for writer in met:
            writer.transport.abort()


async def dial(gate: Gate, endpoint: str, why: str = "silent", secret: str = "") -> tuple[Any, Any, int]:
    """Ask the gate as ZeroMQ does: (reader, writer, SOCKS reply)."""
    host, port = gate.proxy.split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    _DIALLED.append(writer)
    writer.write(b"\x05\x01\x00")
    assert await reader.readexactly(2) == b"\x05\x00"
    wanted = f"{secret or gate.secret}.{why}.{pipe_name(endpoint, b'')}".encode()
    writer.write(b"\x05\x01\x00\x03" + bytes([len(wanted)]) + wanted + b"\x00\x01")
    return reader, writer, (await reader.readexactly(10))[1]
