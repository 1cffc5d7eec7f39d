"""Bytes between two ends, in both directions, until one of them has ended or nothing moves any more.

Promises: order and content are kept; at most one chunk a direction is held here, so a slow reader slows its writer;
what an end said before it ended is delivered. Ends are sockets and gRPC calls, seen from either side.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any, Protocol

import grpc
import grpc.aio

from medley.concurrency import TaskGroup
from medley.protocol.errors import PeerError
from medley.transports.tunnel.contract import Limits

_EOF: Any = grpc.aio.EOF  # type: ignore[attr-defined]
# What reading or writing raises when the other side is gone.
GONE = (OSError, grpc.aio.AioRpcError, grpc.aio.BaseError, asyncio.InvalidStateError, PeerError)


class End(Protocol):
    async def read(self) -> bytes:
        """The next bytes; none at the end. Raises one of GONE."""

    async def write(self, data: bytes) -> None:
        """Returns when there is room for more. Raises one of GONE."""

    async def finish(self) -> bool:
        """Say that no more comes; whether this end may still speak itself."""


class SocketEnd:
    """A TCP connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, limits: Limits) -> None:
        self._reader, self._writer, self._limits = reader, writer, limits

    async def read(self) -> bytes:
        return await self._reader.read(self._limits.chunk_nbytes)

    async def write(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def finish(self) -> bool:
        if self._writer.can_write_eof():
            self._writer.write_eof()
        return True

    async def close(self) -> None:
        """What was written still goes out, if the other side reads it within the grace."""
        self._writer.close()
        try:
            with contextlib.suppress(OSError):  # a TimeoutError is one too
                async with asyncio.timeout(self._limits.grace_s):
                    await self._writer.wait_closed()
        finally:
            self._writer.transport.abort()


class CallEnd:
    """A gRPC call that we made."""

    def __init__(self, call: Any, limits: Limits) -> None:
        self._call, self._limits = call, limits

    async def read(self) -> bytes:
        return _checked(await self._call.read(), self._limits)

    async def write(self, data: bytes) -> None:
        await self._call.write(data)

    async def finish(self) -> bool:
        await self._call.done_writing()
        return True


class ContextEnd:
    """A gRPC call that was made to us. It ends for its caller when our handler returns, both ways at once."""

    def __init__(self, context: Any, limits: Limits) -> None:
        self._context, self._limits = context, limits

    async def read(self) -> bytes:
        return _checked(await self._context.read(), self._limits)

    async def write(self, data: bytes) -> None:
        await self._context.write(data)

    async def finish(self) -> bool:
        return False


def _checked(data: Any, limits: Limits) -> bytes:
    if data is _EOF:
        return b""
    if not data or len(data) > limits.message_nbytes:
        raise PeerError(f"a message of {len(data)} bytes is outside of 1 to {limits.message_nbytes}")
    return bytes(data)


async def pump(a: End, b: End, limits: Limits) -> str:
    """Until the end; why it came, empty when an end simply finished."""
    try:
        async with asyncio.timeout(limits.idle_s) as patience:
            return await _both(a, b, patience, limits)
    except TimeoutError:
        return "nothing moved"


async def _both(a: End, b: End, patience: asyncio.Timeout, limits: Limits) -> str:
    problem = ""
    try:
        async with TaskGroup() as tasks:
            ways = [tasks.create_task(_carry(x, y, patience, limits)) for x, y in ((a, b), (b, a))]
            done, rest = await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            if rest and all(way.exception() is None and way.result() for way in done):
                patience.reschedule(asyncio.get_running_loop().time() + limits.grace_s)
                await asyncio.wait(rest)
            for way in rest:
                way.cancel()
    except* GONE as errors:
        problem = str(errors.exceptions[0]) or type(errors.exceptions[0]).__name__
    return problem


async def _carry(source: End, target: End, patience: asyncio.Timeout, limits: Limits) -> bool:
    """Everything that one end says; whether the other may still speak."""
    loop = asyncio.get_running_loop()
    while data := await source.read():
        await target.write(data)
        if not patience.expired():  # bytes may come in the very moment in which it ends
            patience.reschedule(loop.time() + limits.idle_s)
    return await target.finish()
