"""A node or a coordinator in a process that a test can kill: `control_process.py ROLE FILE ADDRESS`."""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import AsyncGenerator

from medley.protocol.doors import JoinReply, JoinRequest
from medley.protocol.messages import Capability, Hello
from medley.protocol.wire import Envelope
from medley.transports.control.client import ControlClient
from medley.transports.control.contract import Limits
from medley.transports.control.server import ControlServer
from medley.transports.identity import Credentials


class Printer:
    def connected(self, node: str, boot: str) -> None:
        print("connected", node, boot, flush=True)

    def heard(self, node: str, envelope: Envelope) -> None:
        print("heard", node, flush=True)

    def lost(self, node: str, boot: str) -> None:
        print("lost", node, boot, flush=True)

    async def ask(self, method: str, body: bytes, caller: str) -> bytes:
        return body

    async def follow(self, method: str, body: bytes, caller: str) -> AsyncGenerator[bytes, None]:
        yield body

    async def join(self, request: JoinRequest) -> JoinReply:
        return JoinReply(b"", b"", "", "", "no")


async def coordinator(identity: Credentials, address: str) -> None:
    host, _, port = address.rpartition(":")
    server = await ControlServer.open(
        host=host, control_port=int(port), door_port=0, identity=identity, handler=Printer(), limits=Limits()
    )
    print("listening", server.control_address, flush=True)
    await asyncio.Event().wait()


async def node(identity: Credentials, address: str) -> None:
    def hello() -> Hello:
        return Hello("n1", "b1", Capability(1, 1, "", True, True), (), ())

    await ControlClient(rng=random.Random(1)).run(address, identity, hello, lambda envelope: None)


def main() -> None:
    role, file, address = sys.argv[1:]
    asyncio.run({"coordinator": coordinator, "node": node}[role](Credentials.load(file), address))


if __name__ == "__main__":
    main()
