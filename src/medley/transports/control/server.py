"""The coordinator's end of the control plane: one stream a node, and the operator's and the join door.

Promises: a node's stream is heard only after its certificate and its Hello agree; the newest stream of a
node replaces the older one; `lost` is told exactly once per `connected`, at once when the peer's process
dies; sending never blocks. What messages mean is the handler's business.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import aclosing
from typing import Any

import grpc
import grpc.aio

from medley.concurrency import TaskGroup
from medley.protocol import wire
from medley.protocol.doors import Answer, JoinReply, JoinRequest, Question
from medley.protocol.errors import FrameError, MedleyError, PeerError, UserError
from medley.protocol.ids import NodeId
from medley.protocol.messages import Hello, ToNode
from medley.transports.control.contract import (
    ASK,
    ATTACH,
    EOF,
    FOLLOW,
    JOIN,
    RENEW,
    ControlOwner,
    Limits,
    server_options,
)
from medley.transports.control.outbox import Outbox
from medley.transports.control.peers import require_role
from medley.transports.identity import Credentials

_LOG = logging.getLogger(__name__)
Context = Any  # grpc.aio.ServicerContext, whose stubs demand type arguments that say nothing here


class _Ended(Exception):
    """A stream is over; the code and the sentence that its peer shall see."""

    def __init__(self, code: grpc.StatusCode, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


class _Stream:
    """One admitted stream of one life of a node."""

    def __init__(self, node: NodeId, boot: str, limits: Limits) -> None:
        self.node = node
        self.boot = boot
        self.outbox = Outbox(limits.outbound_messages, limits.outbound_nbytes)
        self.ended: asyncio.Future[_Ended] = asyncio.get_running_loop().create_future()

    def end(self, code: grpc.StatusCode, reason: str) -> None:
        if not self.ended.done():
            self.ended.set_result(_Ended(code, reason))
            self.outbox.close(reason)


class ControlServer:
    """Both ports of the coordinator. Make one with `open`; its methods belong to that event loop."""

    def __init__(self, handler: ControlOwner, limits: Limits) -> None:
        self._handler = handler
        self._limits = limits
        self._streams: dict[NodeId, _Stream] = {}
        self._closing = False
        self._control = grpc.aio.server(
            options=server_options(limits, limits.message_nbytes), maximum_concurrent_rpcs=limits.rpcs
        )
        self._door = grpc.aio.server(
            options=server_options(limits, limits.door_message_nbytes),
            maximum_concurrent_rpcs=limits.door_rpcs,
        )
        self.control_address = ""
        self.door_address = ""

    @classmethod
    async def open(
        cls,
        *,
        host: str,
        control_port: int,
        door_port: int,
        identity: Credentials,
        handler: ControlOwner,
        limits: Limits,
        beside: Mapping[str, grpc.RpcMethodHandler] | None = None,
    ) -> ControlServer:
        """Listen on both ports (0: the system picks). Raises UserError when a port cannot be had.

        `beside` are further calls of the control port, by their full paths, which look after themselves.
        """
        server = cls(handler, limits)
        pair = [(identity.key_pem, identity.cert_pem)]
        mutual = grpc.ssl_server_credentials(pair, identity.authority_pem, require_client_auth=True)
        server._control.add_generic_rpc_handlers((server._control_methods(), _Methods(dict(beside or {}))))
        server._door.add_generic_rpc_handlers((server._door_methods(),))
        try:
            server.control_address = _bind(server._control, host, control_port, mutual, "control")
            server.door_address = _bind(server._door, host, door_port, grpc.ssl_server_credentials(pair), "join")
        except UserError:
            await server.close()
            raise
        await server._control.start()
        await server._door.start()
        return server

    @property
    def nodes(self) -> tuple[NodeId, ...]:
        """The nodes connected now."""
        return tuple(self._streams)

    def send(self, node: NodeId, message: ToNode, cause: str = "", term: int = 0) -> bool:
        """Queue a message; never blocks. False if the node is not connected, or was too slow and now is not
        any more.

        Raises FrameError for a message that the contract cannot carry.
        """
        stream = self._streams.get(node)
        if stream is None:
            return False
        if stream.outbox.put(wire.encode(message, cause=cause, term=term)):
            return True
        self._end(stream, grpc.StatusCode.RESOURCE_EXHAUSTED, "this node reads too slowly; connect again")
        return False

    def disconnect(self, node: NodeId, reason: str) -> None:
        """End a node's stream after what was already sent to it; its `lost` is told before this returns."""
        stream = self._streams.get(node)
        if stream is not None:
            self._end(stream, grpc.StatusCode.PERMISSION_DENIED, reason)

    async def close(self) -> None:
        """End every stream and free both ports."""
        self._closing = True
        for stream in list(self._streams.values()):
            self._end(stream, grpc.StatusCode.UNAVAILABLE, "the coordinator stops")
        await self._door.stop(self._limits.drain_timeout_s)
        await self._control.stop(2 * self._limits.drain_timeout_s)

    # -- streams --------------------------------------------------------------------------------------------

    async def _attach(self, _requests: Any, context: Context) -> None:
        ended = await self._serve(context)
        # A peer that does not read holds the status back; gRPC keeps it, and the one message before it, until
        # the peer reads on or its connection ends, but the stream's task must not wait for that.
        try:
            async with asyncio.timeout(self._limits.drain_timeout_s):
                await context.abort(ended.code, ended.reason)
        except TimeoutError:
            _LOG.info("a stream ended without its peer reading why: %s", ended.reason)

    async def _serve(self, context: Context) -> _Ended:
        """Admit and run one stream until it ends. A cancellation means that the peer is gone."""
        try:
            node, envelope = await self._greet(context)
            stream = self._admit(node, envelope.message.boot)
        except _Ended as ended:
            _LOG.warning("refused a stream from %s: %s", context.peer(), ended.reason)
            return ended
        try:
            self._connected(stream, envelope)
            await context.send_initial_metadata(())
            return await self._run(stream, context)
        finally:
            self._end(stream, grpc.StatusCode.UNAVAILABLE, "the stream ended")

    async def _greet(self, context: Context) -> tuple[NodeId, wire.Envelope]:
        try:
            node = require_role(context.auth_context(), "node")
            async with asyncio.timeout(self._limits.hello_timeout_s):
                data = await context.read()
            if data is EOF:
                raise _Ended(grpc.StatusCode.INVALID_ARGUMENT, "the stream ended before its Hello")
            envelope = wire.decode(data)
        except PeerError as error:
            raise _refusal(error) from None
        except TimeoutError:
            raise _Ended(grpc.StatusCode.DEADLINE_EXCEEDED, "no Hello came in time") from None
        if not isinstance(envelope.message, Hello):
            raise _Ended(grpc.StatusCode.INVALID_ARGUMENT, "the first message must be Hello")
        if envelope.message.node != node:
            raise _Ended(
                grpc.StatusCode.PERMISSION_DENIED,
                f"the certificate is of node '{node}' but the Hello names '{envelope.message.node}'",
            )
        return node, envelope

    def _admit(self, node: NodeId, boot: str) -> _Stream:
        if self._closing:
            raise _Ended(grpc.StatusCode.UNAVAILABLE, "the coordinator stops")
        older = self._streams.get(node)
        if older is not None:
            self._end(older, grpc.StatusCode.ABORTED, "another stream of this node replaced this one")
        stream = self._streams[node] = _Stream(node, boot, self._limits)
        return stream

    def _connected(self, stream: _Stream, envelope: wire.Envelope) -> None:
        try:
            self._handler.connected(stream.node, stream.boot)
            if not stream.ended.done():
                self._handler.heard(stream.node, envelope)
        except PeerError as error:
            refusal = _refusal(error)
            self._end(stream, refusal.code, refusal.reason)

    async def _run(self, stream: _Stream, context: Context) -> _Ended:
        try:
            async with TaskGroup() as tasks:
                reading = tasks.create_task(self._read(stream, context))
                writing = tasks.create_task(self._write(stream, context))
                ended = await asyncio.shield(stream.ended)
                # What was said before the end (a Refused, say) still deserves its moment.
                await asyncio.wait([writing], timeout=self._limits.drain_timeout_s)
                reading.cancel()
                writing.cancel()
        except* PeerError as errors:
            ended = _refusal(errors.exceptions[0])
        return ended

    async def _read(self, stream: _Stream, context: Context) -> None:
        while not stream.ended.done():
            data = await context.read()
            if data is EOF:
                self._end(stream, grpc.StatusCode.CANCELLED, "the node left")  # gRPC aborts no call with OK
            elif not stream.ended.done():
                envelope = wire.decode(data)
                if isinstance(envelope.message, Hello):
                    raise PeerError("a stream has one Hello, its first message")
                self._handler.heard(stream.node, envelope)

    async def _write(self, stream: _Stream, context: Context) -> None:
        while (data := await stream.outbox.take()) is not None:
            await context.write(data)

    def _end(self, stream: _Stream, code: grpc.StatusCode, reason: str) -> None:
        """Tell the handler, once, and let the stream's own task do the rest."""
        first = not stream.ended.done()
        stream.end(code, reason)
        if self._streams.get(stream.node) is stream:
            del self._streams[stream.node]
        if first:
            self._handler.lost(stream.node, stream.boot)

    # -- doors ----------------------------------------------------------------------------------------------

    async def _join(self, data: bytes, context: Context) -> bytes:
        async def answer() -> bytes:
            async with asyncio.timeout(self._limits.join_timeout_s):
                request = wire.decode_plain(JoinRequest, data)
                return wire.encode_plain(await self._handler.join(request))

        return await _answered(answer, _no_certificate, context)

    async def _renew(self, data: bytes, context: Context) -> bytes:
        try:
            require_role(context.auth_context(), "node")
        except PeerError as error:
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, str(error))
            raise
        certificate = next(iter(context.auth_context()["x509_pem_cert"]))

        async def answer() -> bytes:
            async with asyncio.timeout(self._limits.join_timeout_s):
                request = wire.decode_plain(JoinRequest, data)
                return wire.encode_plain(await self._handler.renew(request, certificate))

        return await _answered(answer, _no_certificate, context)

    async def _ask(self, data: bytes, context: Context) -> bytes:
        caller = await _operator(context)

        async def answer() -> bytes:
            async with asyncio.timeout(self._limits.ask_timeout_s):
                question = wire.decode_plain(Question, data)
                body = await self._handler.ask(question.method, question.body_json, caller)
                return wire.encode_plain(Answer(body, ""))

        return await _answered(answer, _error, context)

    async def _follow(self, data: bytes, context: Context) -> None:
        caller = await _operator(context)
        try:
            question = wire.decode_plain(Question, data)
            async with aclosing(self._handler.follow(question.method, question.body_json, caller)) as answers:
                async for body in answers:
                    await context.write(wire.encode_plain(Answer(body, "")))
        except MedleyError as error:
            await context.write(_error(str(error)))

    def _control_methods(self) -> grpc.GenericRpcHandler:
        return _Methods(
            {
                ATTACH: grpc.stream_stream_rpc_method_handler(self._attach),
                RENEW: grpc.unary_unary_rpc_method_handler(self._renew),
                ASK: grpc.unary_unary_rpc_method_handler(self._ask),
                FOLLOW: grpc.unary_stream_rpc_method_handler(self._follow),
            }
        )

    def _door_methods(self) -> grpc.GenericRpcHandler:
        return _Methods({JOIN: grpc.unary_unary_rpc_method_handler(self._join)})


class _Methods(grpc.GenericRpcHandler):
    """Full method path -> handler; messages stay bytes, because our own codec is stricter about them."""

    def __init__(self, methods: dict[str, grpc.RpcMethodHandler]) -> None:
        self._methods = methods

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        return self._methods.get(handler_call_details.method)


async def _answered(answer: Callable[[], Awaitable[bytes]], refuse: Callable[[str], bytes], context: Context) -> bytes:
    try:
        return await answer()
    except MedleyError as error:
        return refuse(str(error))
    except TimeoutError:
        await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "the coordinator took too long to answer")
        raise


async def _operator(context: Context) -> str:
    try:
        return require_role(context.auth_context(), "operator")
    except PeerError as error:
        await context.abort(grpc.StatusCode.PERMISSION_DENIED, str(error))
        raise


def _no_certificate(reason: str) -> bytes:
    return wire.encode_plain(JoinReply(b"", b"", "", "", reason))


def _error(reason: str) -> bytes:
    return wire.encode_plain(Answer(b"", reason))


def _refusal(error: BaseException) -> _Ended:
    bad_bytes = isinstance(error, FrameError)
    code = grpc.StatusCode.INVALID_ARGUMENT if bad_bytes else grpc.StatusCode.PERMISSION_DENIED
    return _Ended(code, str(error))


def _bind(server: grpc.aio.Server, host: str, port: int, credentials: grpc.ServerCredentials, what: str) -> str:
    """Bind and say where: `host:port`. gRPC logs its own account of a failure; the sentence is for people."""
    name = f"[{host}]" if ":" in host else host
    try:
        bound = server.add_secure_port(f"{name}:{port}", credentials)
    except (RuntimeError, ValueError):
        bound = 0
    if bound == 0:
        raise UserError(
            f"cannot listen on {name}:{port} ({what} port): it is in use or not an address of this machine; "
            "choose another port, or stop the process that holds it"
        )
    return f"{name}:{bound}"
