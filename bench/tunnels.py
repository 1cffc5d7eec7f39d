"""The processes of a pipe for `bench/tensors.py`: a coordinator's relay and the parents of two nodes, as in production.

Each `serve_*` runs in a process of its own and says over a multiprocessing pipe what the next one needs.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncGenerator
from multiprocessing.connection import Connection
from pathlib import Path

from medley.concurrency import TaskGroup
from medley.protocol.doors import JoinReply, JoinRequest
from medley.protocol.messages import Called, Capability, Hello
from medley.protocol.wire import Envelope
from medley.transports.control.client import ControlClient
from medley.transports.control.contract import Limits
from medley.transports.control.server import ControlServer
from medley.transports.identity import Authority, Credentials
from medley.transports.tensors import Detour, Peer, Ways
from medley.transports.tunnel.contract import Place, Why, pipe_name
from medley.transports.tunnel.gate import Gate
from medley.transports.tunnel.line import Line
from medley.transports.tunnel.relay import Relay


class Exchange:
    """Knows one engine, which is the vault or a shard of node `b`. Hears the control plane and has no opinion."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.server: ControlServer | None = None

    def admitted(self, node: str) -> None:
        pass

    def find(self, asker: str, name: str) -> Place:
        return self.place

    def call(self, node: str, number: int, name: str) -> bool:
        return self.server is not None and self.server.send(node, Called(number, name))

    def piped(self, asker: str, place: Place, why: Why) -> None:
        pass

    def connected(self, node: str, boot: str) -> None:
        pass

    def heard(self, node: str, envelope: Envelope) -> None:
        pass

    def lost(self, node: str, boot: str) -> None:
        pass

    async def ask(self, method: str, body: bytes, caller: str) -> bytes:
        raise NotImplementedError

    def follow(self, method: str, body: bytes, caller: str) -> AsyncGenerator[bytes, None]:
        raise NotImplementedError

    async def join(self, request: JoinRequest) -> JoinReply:
        raise NotImplementedError

    async def renew(self, request: JoinRequest, certificate: bytes) -> JoinReply:
        raise NotImplementedError


def serve_relay(pipe: Connection, room: str, endpoint: str, vault: bool) -> None:
    """Says its control address."""
    port = int(endpoint.rpartition(":")[2])
    place = Place("" if vault else "b", "the engine", endpoint, "127.0.0.1", port)

    async def main() -> None:
        authority = Authority.open(Path(room), time.time_ns())
        for node in "ab":
            authority.enrol(node, "node", time.time_ns()).save(Path(room) / f"{node}.pem")
        exchange = Exchange(place)
        exchange.server = await ControlServer.open(
            host="127.0.0.1",
            control_port=0,
            door_port=0,
            identity=authority.serve("coordinator", ["127.0.0.1"], time.time_ns()),
            handler=exchange,
            limits=Limits(),
            beside=Relay(exchange).methods(),
        )
        pipe.send(exchange.server.control_address)
        await asyncio.to_thread(pipe.recv)
        await exchange.server.close()

    asyncio.run(main())


def serve_node(pipe: Connection, room: str, node: str, control: str, endpoint: str, key: bytes) -> None:
    """Says the proxy and the secret of its gate, once it is connected. Node `b` has the engine."""
    host, port = "127.0.0.1", int(endpoint.rpartition(":")[2])
    own = {pipe_name(endpoint, key): (host, port)} if node == "b" else {}

    async def main() -> None:
        identity = Credentials.load(Path(room) / f"{node}.pem")
        gate = Gate(Line(control, lambda: identity), own.get)

        def told(envelope: Envelope) -> None:
            if isinstance(envelope.message, Called):
                gate.called(envelope.message.number, envelope.message.name)

        open_, connected = asyncio.Event(), asyncio.Event()
        hello = Hello(node, "1", Capability(1, 1, "", True, True), (), ())
        client = ControlClient(rng=random.Random(1))
        async with TaskGroup() as tasks:
            running = [
                tasks.create_task(gate.run(open_.set)),
                tasks.create_task(client.run(control, identity, lambda: hello, told, connected.set)),
            ]
            await open_.wait()
            await connected.wait()
            pipe.send((gate.proxy, gate.secret))
            await asyncio.to_thread(pipe.recv)
            for task in running:
                task.cancel()

    asyncio.run(main())


def ways_through(proxy: str, secret: str) -> Ways:
    def named(peer: Peer, why: str) -> str:
        return f"tcp://{secret}.{why}.{pipe_name(peer.endpoint, peer.public_key or b'')}:1"

    return Ways("grpc", Detour(proxy, named))
