"""A node's end of the control plane: one outbound stream, held for ever; and the one call that joins a fleet.

Promises: Hello first on every stream, messages in order, never a blocked sender, and a new attempt after
every loss, 0.1 s to 0.5 s later (2 s after a refusal), jittered. What is said while disconnected is dropped:
the statuses in the next Hello say it again.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, NoReturn

import grpc
import grpc.aio

from medley.concurrency import TaskGroup
from medley.protocol import wire
from medley.protocol.doors import JoinReply, JoinRequest
from medley.protocol.errors import FrameError, Unavailable, UserError
from medley.protocol.messages import FromNode, Hello
from medley.protocol.traffic import class_of
from medley.transports.control.contract import ATTACH, EOF, JOIN, RENEW, Limits, channel_options
from medley.transports.control.outbox import Outbox
from medley.transports.identity import Credentials

if TYPE_CHECKING:
    from medley.transports.shaping.control import ControlLink, Conversation, Lane

_REFUSED_BY_TLS = ("CERTIFICATE", "ALERT", "SSL_ERROR_SSL")
# Answers that will be the same in a tenth of a second: ask again at the slow end of the backoff.
_FINAL = frozenset(
    {
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.ABORTED,
    }
)


class _Over(Exception):
    """The stream ended for a reason of ours."""


class ControlClient:
    """Keeps one stream to the coordinator. All methods belong to the event loop that `run` runs on."""

    def __init__(self, *, rng: random.Random, limits: Limits | None = None) -> None:
        self._rng = rng
        self._limits = limits or Limits()
        self._outbox: Outbox | None = None
        self._hurry = asyncio.Event()
        self._link: ControlLink | None = None

    def shape(self, link: ControlLink | None) -> None:
        """From the next stream on, and that is now, messages meet this emulated link; None: the real one only."""
        if link is not self._link:
            self._link = link
            self.reconnect("its link is another from now on")

    @property
    def connected(self) -> bool:
        return self._outbox is not None

    def send(self, message: FromNode, cause: str = "") -> bool:
        """Queue a message; never blocks. False (and dropped) when disconnected; an overflow ends the stream.

        Raises FrameError for a message that the contract cannot carry.
        """
        if self._outbox is None:
            return False
        if self._outbox.put(wire.encode(message, cause=cause)):
            return True
        self.reconnect("the coordinator reads too slowly")
        return False

    def reconnect(self, reason: str) -> None:
        """End the present stream, or cut the present pause short."""
        self._hurry.set()
        if self._outbox is not None:
            self._outbox.close(reason)

    async def run(
        self,
        address: str,
        identity: Credentials | Callable[[], Credentials],
        hello: Callable[[], Hello],
        inbox: Callable[[wire.Envelope], None],
        connected: Callable[[], None] = lambda: None,
        disconnected: Callable[[str], None] = lambda reason: None,
    ) -> NoReturn:
        """Stay connected until cancelled. `hello` and `identity` are asked at each attempt; no callback may block.

        `disconnected` hears one sentence for each attempt that ended, whether or not it had connected.
        """
        delay_s = self._limits.reconnect_first_s
        while True:
            session = _Session(self, hello, inbox, connected)
            reason = await session.run(address, identity() if callable(identity) else identity)
            disconnected(reason)
            if session.refused:
                delay_s = self._limits.refused_pause_s
            elif session.was_connected:
                delay_s = self._limits.reconnect_first_s
            await self._pause(delay_s)
            delay_s = min(2 * delay_s, self._limits.reconnect_last_s)

    async def _pause(self, delay_s: float) -> None:
        self._hurry.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(delay_s * (0.5 + 0.5 * self._rng.random())):
                await self._hurry.wait()


class _Session:
    """One attempt: one channel, one stream."""

    def __init__(
        self,
        client: ControlClient,
        hello: Callable[[], Hello],
        inbox: Callable[[wire.Envelope], None],
        connected: Callable[[], None],
    ) -> None:
        self._client = client
        self._limits = client._limits
        self._hello = hello
        self._inbox = inbox
        self._connected = connected
        self.was_connected = False
        self.refused = False

    async def run(self, address: str, identity: Credentials) -> str:
        """Why the attempt ended, in a sentence."""
        talk = None if self._client._link is None else self._client._link.converse()
        if talk is not None and (problem := await talk.open()):
            return problem
        credentials = grpc.ssl_channel_credentials(identity.authority_pem, identity.key_pem, identity.cert_pem)
        async with grpc.aio.secure_channel(address, credentials, channel_options(self._limits)) as channel:
            call: Any = channel.stream_stream(ATTACH)()  # type: ignore[call-arg]
            try:
                await self._open(call)
                await self._converse(call, talk)
            except grpc.aio.AioRpcError as error:
                self.refused = error.code() in _FINAL
                return error.details() or f"the stream ended ({error.code().name})"
            except (FrameError, _Over, TimeoutError) as error:
                return str(error) or "the coordinator did not answer in time"
            finally:
                self._client._outbox = None
                call.cancel()

    async def _open(self, call: Any) -> None:
        hello = wire.encode(self._hello())
        async with asyncio.timeout(self._limits.hello_timeout_s):
            with contextlib.suppress(asyncio.InvalidStateError):
                await call.write(hello)
                await call.initial_metadata()
            if call.done():
                await call.read()
                raise _Over("the coordinator ended the stream")

    async def _converse(self, call: Any, talk: Conversation | None) -> NoReturn:
        outbox = Outbox(self._limits.outbound_messages, self._limits.outbound_nbytes)
        self._client._outbox = outbox
        self.was_connected = True
        self._connected()
        ended: BaseException = _Over("the stream ended")
        try:
            async with TaskGroup() as tasks:
                tasks.create_task(self._watch(outbox))
                if talk is None:
                    tasks.create_task(self._read(call))
                    tasks.create_task(self._write(call, outbox.take))
                else:
                    up, down = talk.up(), talk.down()
                    tasks.create_task(self._send_late(outbox, up))
                    tasks.create_task(self._write(call, up.take))
                    tasks.create_task(self._read_late(call, down))
                    tasks.create_task(self._hear(down))
        except* (grpc.aio.AioRpcError, FrameError, _Over, TimeoutError) as errors:
            ended = errors.exceptions[0]
        raise ended

    async def _read(self, call: Any) -> NoReturn:
        while True:
            data = await call.read()
            if data is EOF:
                raise _Over("the coordinator ended the stream")
            self._inbox(wire.decode(data))

    async def _write(self, call: Any, take: Callable[[], Awaitable[bytes | None]]) -> None:
        while (data := await take()) is not None:
            try:
                await call.write(data)
            except asyncio.InvalidStateError:
                return  # the call is over, and the reader is about to hear why

    # -- over an emulated link, where messages wait in lanes ---------------------------------------------------

    async def _send_late(self, outbox: Outbox, up: Lane[bytes]) -> None:
        while (data := await outbox.take()) is not None:
            await up.put(data, len(data), class_of(wire.decode_message(data)))

    async def _read_late(self, call: Any, down: Lane[wire.Envelope]) -> NoReturn:
        while True:
            data = await call.read()
            if data is EOF:
                raise _Over("the coordinator ended the stream")
            envelope = wire.decode(data)
            await down.put(envelope, len(data), class_of(envelope.message))

    async def _hear(self, down: Lane[wire.Envelope]) -> NoReturn:
        while True:
            self._inbox(await down.take())

    async def _watch(self, outbox: Outbox) -> NoReturn:
        # Not left to the writer, who may be stuck behind a coordinator that does not read.
        raise _Over(await outbox.closed())


async def join(
    door_address: str, authority_pem: bytes, request: JoinRequest, limits: Limits | None = None
) -> JoinReply:
    """Redeem a token. Raises Unavailable when nobody answers; a refusal is the reply's own `refused`."""
    limits = limits or Limits()
    credentials = grpc.ssl_channel_credentials(authority_pem)
    async with grpc.aio.secure_channel(door_address, credentials, channel_options(limits)) as channel:
        try:
            call: Any = channel.unary_unary(JOIN)  # type: ignore[call-arg]
            data = await call(wire.encode_plain(request), timeout=limits.join_timeout_s)
        except grpc.aio.AioRpcError as error:
            raise unanswered(door_address, error) from None
    return wire.decode_plain(JoinReply, data)


async def renew(address: str, identity: Credentials, csr_pem: bytes, limits: Limits | None = None) -> JoinReply:
    """A new certificate for our own name, over the control port. Raises as `join`."""
    limits = limits or Limits()
    credentials = grpc.ssl_channel_credentials(identity.authority_pem, identity.key_pem, identity.cert_pem)
    async with grpc.aio.secure_channel(address, credentials, channel_options(limits)) as channel:
        try:
            call: Any = channel.unary_unary(RENEW)  # type: ignore[call-arg]
            data = await call(wire.encode_plain(JoinRequest("", "", csr_pem, "")), timeout=limits.join_timeout_s)
        except grpc.aio.AioRpcError as error:
            raise unanswered(address, error) from None
    return wire.decode_plain(JoinReply, data)


def unanswered(address: str, error: Any) -> UserError | Unavailable:
    """The sentence for a call that failed below the contract. `error` is a grpc.RpcError with a code."""
    details = error.details() or ""
    match error.code():
        # Only what TLS itself refused: a handshake also ends when the coordinator dies in the middle of it.
        case grpc.StatusCode.UNAVAILABLE if any(word in details.upper() for word in _REFUSED_BY_TLS):
            return UserError(
                f"the coordinator at {address} and this machine's certificate are not of the same fleet; "
                "join it again with a token of that coordinator"
            )
        case grpc.StatusCode.UNAVAILABLE:
            return Unavailable(f"nothing answers at {address}: is the coordinator running there? ({details})")
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return Unavailable(f"the coordinator at {address} did not answer in time")
        case grpc.StatusCode.PERMISSION_DENIED | grpc.StatusCode.UNAUTHENTICATED:
            return UserError(f"the coordinator at {address} refused: {details}")
        case code:
            return Unavailable(f"the coordinator at {address} failed: {details or code.name}")
