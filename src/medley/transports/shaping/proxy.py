"""The shaped way of the tensor plane: a SOCKS5 proxy on loopback for what this machine's engines dial, and fronts for
what others dial here.

ZeroMQ speaks SOCKS5 (RFC 1928, RFC 1929) itself, so an engine only needs to know where to ask. Name and password are
made anew in each life of the node and known to its engines only. Sockets are bound when they are made, served by `run`.
An engine that cannot be connected is told that it is, and loses the connection: libzmq aborts where a proxy refuses.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import secrets
import socket
from collections.abc import Callable
from ipaddress import ip_address

from medley.concurrency import TaskGroup
from medley.transports.shaping.contract import Connections, Limits, Moved, Sender, Timer
from medley.transports.shaping.pipe import Pipe, now_s

LOOPBACK = "127.0.0.1"
_LOG = logging.getLogger(__name__)
_VERSION, _AUTH_VERSION, _PASSWORD, _CONNECT = 5, 1, 2, 1
_DONE = 0
_REST = bytes((0, 1, 0, 0, 0, 0, 0, 0))
GONE = (OSError, asyncio.IncompleteReadError, ValueError, TimeoutError)


class _Relay:
    """What proxy and fronts share: counted connections, each with its own streams over the machine's one link."""

    def __init__(self, connections: Connections, timer: Timer, limits: Limits | None, moved: Moved | None) -> None:
        self._connections, self._timer, self._limits = connections, timer, limits or Limits()
        self.moved = moved or Moved()
        self._open = 0

    async def serve(
        self, listener: socket.socket, met: Callable[[asyncio.StreamReader, asyncio.StreamWriter], object]
    ) -> None:
        """Until cancelled; then every connection ends."""
        async with TaskGroup() as tasks:

            def meet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                if self._open >= self._limits.connections:
                    writer.close()
                else:
                    tasks.create_task(self._counted(met(reader, writer), writer))

            server = await asyncio.start_server(meet, sock=listener, limit=self._limits.piece_nbytes)
            try:
                await asyncio.Event().wait()
            finally:
                server.close()  # and not waited for, as `async with` does: its connections end after this

    async def _counted(self, work: object, writer: asyncio.StreamWriter) -> None:
        self._open += 1
        try:
            await work  # type: ignore[misc]
        except* GONE as errors:
            _LOG.debug("a shaped connection ended: %s", errors.exceptions[0])
        finally:
            self._open -= 1
            writer.close()

    def streams(self) -> tuple[Sender, Sender]:
        return self._connections()

    async def handshake(self, sender: Sender) -> bool:
        """Let the handshake's time pass; False when nobody would wait so long."""
        took_s = sender.handshake_s(now_s(self._timer))
        await self._timer.sleep(min(took_s, self._limits.connect_s))
        return took_s <= self._limits.connect_s

    async def dial(self, host: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        async with asyncio.timeout(self._limits.connect_s):
            return await asyncio.open_connection(host, port, limit=self._limits.piece_nbytes)

    async def join(
        self,
        near: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        far: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        streams: tuple[Sender, Sender],
    ) -> None:
        """Carry both directions until one of them breaks, or has ended and the other had its grace.

        `near` is this machine's own end.
        """
        up = Pipe(streams[0], self._timer, self._limits, self._went_up)
        down = Pipe(streams[1], self._timer, self._limits, self._came_down)
        try:
            async with TaskGroup() as tasks:
                ways = [tasks.create_task(up.run(near[0], far[1])), tasks.create_task(down.run(far[0], near[1]))]
                _, rest = await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
                if rest:
                    await asyncio.wait(rest, timeout=self._limits.grace_s)
                for way in rest:
                    way.cancel()
        finally:
            near[1].close()
            far[1].close()

    def _went_up(self, nbytes: int) -> None:
        self.moved.up_nbytes += nbytes

    def _came_down(self, nbytes: int) -> None:
        self.moved.down_nbytes += nbytes


class Proxy:
    """Where this machine's engines dial through: `address` and `secret` (name and password alike) are for them."""

    def __init__(
        self, connections: Connections, timer: Timer, limits: Limits | None = None, moved: Moved | None = None
    ) -> None:
        self._relay = _Relay(connections, timer, limits, moved)
        self._limits = limits or Limits()
        self._listener = socket.create_server((LOOPBACK, 0), backlog=self._limits.connections)
        self.secret = secrets.token_hex(16)
        self.address = f"{LOOPBACK}:{self._listener.getsockname()[1]}"

    async def run(self) -> None:
        await self._relay.serve(self._listener, self._met)

    async def _met(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with asyncio.timeout(self._limits.request_s):
            host, port = await self._asked(reader, writer)
        streams = self._relay.streams()
        try:
            if not await self._relay.handshake(streams[0]):
                raise TimeoutError("the handshake would take too long on this link")
            far = await self._relay.dial(host, port)
        except GONE:
            writer.write(bytes((_VERSION, _DONE)) + _REST)
            raise
        writer.write(bytes((_VERSION, _DONE)) + _REST)
        await self._relay.join((reader, writer), far, streams)

    async def _asked(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> tuple[str, int]:
        """Host and port of a request to connect. Raises one of GONE for anything else."""
        version, methods = await reader.readexactly(2)
        if version != _VERSION or _PASSWORD not in await reader.readexactly(methods):
            raise ValueError("no SOCKS5 greeting with a password")
        writer.write(bytes((_VERSION, _PASSWORD)))
        version, length = await reader.readexactly(2)
        name = await reader.readexactly(length)
        password = await reader.readexactly((await reader.readexactly(1))[0])
        right = version == _AUTH_VERSION and name == password
        right = hmac.compare_digest(password, self.secret.encode()) and right
        writer.write(bytes((_AUTH_VERSION, 0 if right else 1)))
        if not right:
            raise ValueError("somebody without this node's secret")
        version, command, _, kind = await reader.readexactly(4)
        if (version, command) != (_VERSION, _CONNECT):
            raise ValueError("no SOCKS5 request to connect")
        return await _host(reader, kind), int.from_bytes(await reader.readexactly(2))


class Front:
    """What others dial instead of an engine of this machine: a listener whose connections lead to it."""

    def __init__(
        self,
        host: str,
        port: int,
        target: tuple[str, int],
        connections: Connections,
        timer: Timer,
        limits: Limits | None = None,
        moved: Moved | None = None,
    ) -> None:
        """Raises OSError when the port is taken."""
        self._relay = _Relay(connections, timer, limits, moved)
        self._target = target
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.create_server((host, port), family=family, backlog=128)
        self._over = asyncio.Event()
        self.port: int = self._listener.getsockname()[1]

    async def run(self) -> None:
        """Until cancelled, or closed."""
        try:
            async with TaskGroup() as tasks:
                serving = tasks.create_task(self._relay.serve(self._listener, self._met))
                await self._over.wait()
                serving.cancel()
        finally:
            self._listener.close()

    def close(self) -> None:
        """Its engine is gone: `run` ends, now or as soon as it is called."""
        self._over.set()

    async def _met(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up, down = self._relay.streams()
        if not await self._relay.handshake(down):
            raise TimeoutError("the handshake would take too long on this link")
        engine = await self._relay.dial(*self._target)
        await self._relay.join(engine, (reader, writer), (up, down))


async def _host(reader: asyncio.StreamReader, kind: int) -> str:
    match kind:
        case 1 | 4:  # IPv4, IPv6
            return str(ip_address(await reader.readexactly(4 if kind == 1 else 16)))
        case 3:  # a name
            return (await reader.readexactly((await reader.readexactly(1))[0])).decode("ascii")
        case _:
            raise ValueError(f"no kind of address: {kind}")
