"""A node's part of pipes: a SOCKS5 gate on loopback for its own engines, and the answer when one of them is called.

ZeroMQ speaks SOCKS5 (RFC 1928) itself, so an engine needs no code for this: it asks the gate for
`<secret>.<why>.<name>` instead of a host. The secret is made anew in each life of the node and known to its engines
only. An engine of this very node is connected at once; any other through the coordinator.

An engine is never refused: libzmq 4.3.5 aborts its process when it closes a socket that its proxy has refused, or has
hung up on before an answer. It is told that it is connected, and a moment later the connection ends, which libzmq bears
as it does a peer that is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import secrets
import struct
from collections.abc import Callable

from medley.concurrency import TaskGroup
from medley.protocol.errors import PeerError
from medley.transports.tunnel.contract import Limits, Why, check_name, check_why
from medley.transports.tunnel.line import Line
from medley.transports.tunnel.pump import GONE, CallEnd, End, SocketEnd, pump

_LOG = logging.getLogger(__name__)
_VERSION, _NO_PASSWORD, _CONNECT, _HOST_NAME = 5, 0, 1, 3
_DONE, _REFUSED = 0, 5
_ANSWER = struct.Struct("!BBBB4sH")
LOOPBACK = "127.0.0.1"
Own = Callable[[str], tuple[str, int] | None]


class Gate:
    """`proxy` and `secret` are for the engines, once `run` is ready."""

    def __init__(
        self,
        line: Line,
        own: Own,
        piped: Callable[[str, Why], None] = lambda name, why: None,
        limits: Limits | None = None,
    ) -> None:
        """`own(name)` is where an engine of this node listens, None for any other. `piped` hears of relayed ones."""
        self._line, self._own, self._piped, self._limits = line, own, piped, limits or Limits()
        self._tasks: asyncio.TaskGroup | None = None
        self._open = 0
        self.secret = secrets.token_hex(16)
        self.proxy = ""

    async def run(self, ready: Callable[[], None] = lambda: None) -> None:
        """Serve until cancelled; then every pipe ends."""
        try:
            async with TaskGroup() as tasks:
                self._tasks = tasks
                server = await asyncio.start_server(self._met, LOOPBACK, 0, limit=self._limits.chunk_nbytes)
                self.proxy = f"{LOOPBACK}:{server.sockets[0].getsockname()[1]}"
                try:
                    ready()
                    await asyncio.Event().wait()
                finally:
                    server.close()  # and not waited for, as `async with` does: its pipes end after this
        finally:
            await self._line.close()

    def called(self, number: int, name: str) -> None:
        """The coordinator says that somebody calls an engine of this node."""
        if self._tasks is not None:
            self._tasks.create_task(self._take(number, name))

    # -- our engines ask --------------------------------------------------------------------------------------------

    async def _met(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._tasks is None or self._open >= 2 * self._limits.pipes_per_node:
            writer.close()
            return
        # Not in asyncio's own task: its fault or cancellation would be nobody's.
        self._tasks.create_task(self._serve(reader, writer))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open += 1
        engine, answer = SocketEnd(reader, writer, self._limits), _REFUSED
        try:
            async with asyncio.timeout(self._limits.request_s):
                why, name = self._request(await _asked(reader, writer))
            answer = _DONE  # whoever knows the secret is an engine
            if self._open > self._limits.pipes_per_node:
                raise PeerError(f"this node has {self._limits.pipes_per_node} pipes already")
            await self._connect(engine, why, name)
        except GONE as error:
            _LOG.info("no pipe: %s", error)
            with contextlib.suppress(*GONE):
                await engine.write(_ANSWER.pack(_VERSION, answer, 0, 1, bytes(4), 0))
                if answer == _DONE and self._open <= self._limits.pipes_per_node:
                    await self._hold(engine)
        finally:
            self._open -= 1
            await engine.close()

    async def _hold(self, engine: SocketEnd) -> None:
        """Let it believe that it is connected for a moment, unless it hangs up itself: it will ask again at once."""
        async with asyncio.timeout(self._limits.refused_s):
            while await engine.read():
                pass

    def _request(self, host: str) -> tuple[Why, str]:
        secret, _, rest = host.partition(".")
        if not hmac.compare_digest(secret.encode(), self.secret.encode()):
            raise PeerError("somebody without the secret of this node asks")
        why, _, name = rest.partition(".")
        return check_why(why), check_name(name)

    async def _connect(self, engine: SocketEnd, why: Why, name: str) -> None:
        here = self._own(name)
        if here is not None:
            other = await self._dial(*here)
            try:
                await self._joined(engine, other)
            finally:
                await other.close()
            return
        async with self._line.open(name, why) as call:
            self._piped(name, why)
            await self._joined(engine, CallEnd(call, self._limits))

    async def _joined(self, engine: SocketEnd, other: End) -> None:
        await engine.write(_ANSWER.pack(_VERSION, _DONE, 0, 1, bytes(4), 0))
        why = await pump(engine, other, self._limits)
        if why:
            _LOG.info("a pipe ended: %s", why)

    # -- our engines are asked for -----------------------------------------------------------------------------------

    async def _take(self, number: int, name: str) -> None:
        here = self._own(name)
        if here is None or self._open >= self._limits.pipes_per_node:
            _LOG.info("a call for an engine that is not here, or one too many")
            return
        self._open += 1
        try:
            await self._answer(number, here)
        except GONE as error:
            _LOG.info("a call could not be taken: %s", error)
        finally:
            self._open -= 1

    async def _answer(self, number: int, here: tuple[str, int]) -> None:
        engine = await self._dial(*here)
        try:
            async with self._line.take(number) as call:
                await pump(engine, CallEnd(call, self._limits), self._limits)
        finally:
            await engine.close()

    async def _dial(self, host: str, port: int) -> SocketEnd:
        async with asyncio.timeout(self._limits.dial_s):
            reader, writer = await asyncio.open_connection(host, port, limit=self._limits.chunk_nbytes)
        return SocketEnd(reader, writer, self._limits)


async def _asked(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str:
    """The host of a SOCKS5 request to connect. Raises PeerError for anything else, OSError when it breaks off."""
    try:
        version, methods = await reader.readexactly(2)
        offered = await reader.readexactly(methods)
        if version != _VERSION or _NO_PASSWORD not in offered:
            raise PeerError("this is no SOCKS5 greeting")
        writer.write(bytes((_VERSION, _NO_PASSWORD)))
        version, command, _, kind, length = await reader.readexactly(5)
        if (version, command, kind) != (_VERSION, _CONNECT, _HOST_NAME):
            raise PeerError("this is no SOCKS5 request for a name")
        host = await reader.readexactly(length + 2)
    except asyncio.IncompleteReadError:
        raise ConnectionError("the request broke off") from None
    return host[:-2].decode("ascii", "replace")
