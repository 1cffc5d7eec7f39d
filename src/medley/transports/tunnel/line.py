"""A node's calls to the relay: one channel, made when the first pipe is needed and then kept.

Apart from the channel of the control stream, so that bulk never stands in front of a heartbeat. Kept, because a
handshake over a far link takes as long as an engine waits for a connection.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio

from medley.protocol.errors import PeerError
from medley.transports.control.contract import Limits as ControlLimits
from medley.transports.control.contract import channel_options
from medley.transports.identity import Credentials
from medley.transports.tunnel.contract import NAME, NUMBER, OPEN, STANDS, TAKE, WHY, Limits, Why


@dataclass(eq=False, slots=True)
class _Wire:
    """A channel and how many calls are on it."""

    channel: Any
    identity: Credentials
    calls: int = 0


class Line:
    """Calls the relay at `address`. `identity` is asked at each call: new credentials make a new channel."""

    def __init__(self, address: str, identity: Callable[[], Credentials], limits: Limits | None = None) -> None:
        self._address, self._identity, self._limits = address, identity, limits or Limits()
        self._wire: _Wire | None = None

    @asynccontextmanager
    async def open(self, name: str, why: Why) -> AsyncIterator[Any]:
        """A call to the engine of this name, once its machine has taken it. Raises PeerError with a reason."""
        async with self._calling(OPEN, [(NAME, name), (WHY, str(why))]) as call:
            yield call

    @asynccontextmanager
    async def take(self, number: int) -> AsyncIterator[Any]:
        """The call that we were told of. Raises PeerError."""
        async with self._calling(TAKE, [(NUMBER, str(number))]) as call:
            yield call

    @asynccontextmanager
    async def _calling(self, path: str, metadata: Sequence[tuple[str, str]]) -> AsyncIterator[Any]:
        wire = self._hold()
        try:
            call: Any = wire.channel.stream_stream(path)(metadata=metadata)
            try:
                await self._stands(call)
                yield call
            finally:
                call.cancel()
        finally:
            await self._release(wire)

    async def _stands(self, call: Any) -> None:
        try:
            async with asyncio.timeout(self._limits.take_s + self._limits.dial_s):
                said = await call.initial_metadata()
                # A refusal has no metadata of its own, and may be told before the call knows that it is over.
                if STANDS not in [tuple(one) for one in said or ()]:
                    raise PeerError(await call.details() or "the coordinator refused")
        except TimeoutError:
            raise PeerError("the coordinator did not answer in time") from None
        except grpc.aio.AioRpcError as error:
            raise PeerError(error.details() or error.code().name) from None

    def _hold(self) -> _Wire:
        identity = self._identity()
        if self._wire is None or self._wire.identity != identity:
            credentials = grpc.ssl_channel_credentials(identity.authority_pem, identity.key_pem, identity.cert_pem)
            channel = grpc.aio.secure_channel(self._address, credentials, channel_options(ControlLimits()))
            self._wire = _Wire(channel, identity)
        self._wire.calls += 1
        return self._wire

    async def _release(self, wire: _Wire) -> None:
        wire.calls -= 1
        if not wire.calls and self._wire is not wire:
            await wire.channel.close()

    async def close(self) -> None:
        """Give the channel up; calls on it end."""
        wire, self._wire = self._wire, None
        if wire is not None:
            await wire.channel.close()
