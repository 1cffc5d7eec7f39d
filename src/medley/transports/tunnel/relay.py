"""The coordinator's part of a pipe: it joins the call of an engine that cannot reach another with the other's answer.

Promises: only nodes that are admitted and operators, only engines that the switchboard finds for the asker, bounded
numbers, and an end for every pipe of a node that is expelled. It dials the addresses of the vault and of front ends
only. Bytes are opaque.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio

from medley.concurrency import TaskGroup
from medley.protocol.errors import PeerError
from medley.protocol.ids import NodeId
from medley.transports.control.peers import require_role
from medley.transports.tunnel.contract import (
    NAME,
    NUMBER,
    OPEN,
    OPERATOR,
    STANDS,
    TAKE,
    WHY,
    Limits,
    Place,
    Switchboard,
    Why,
    check_name,
    check_why,
    value_of,
)
from medley.transports.tunnel.pump import ContextEnd, End, SocketEnd, pump

_LOG = logging.getLogger(__name__)
Context = Any  # grpc.aio.ServicerContext, whose stubs demand type arguments that say nothing here
Serve = Callable[[Context], Awaitable[None]]
TOLD_MAX = 10_000
_NUMBER = re.compile(r"[0-9]{1,20}")


class _Denied(Exception):
    """No pipe, or no longer; the code and the sentence that the caller shall see."""

    def __init__(self, code: grpc.StatusCode, reason: str) -> None:
        super().__init__(reason)
        self.code = code


@dataclass(frozen=True, slots=True)
class Pair:
    """Who speaks to whom by relay, and why."""

    asker: NodeId
    place: Place
    why: Why


@dataclass(eq=False, slots=True)
class _Pipe:
    """One call and its answer. `over` is set when it shall end, or has."""

    pair: Pair
    name: str
    answer: asyncio.Future[Context]
    over: asyncio.Event = field(default_factory=asyncio.Event)
    reason: str = ""

    @property
    def nodes(self) -> set[NodeId]:
        return {self.pair.asker, self.pair.place.node} - {""}

    def end(self, reason: str) -> None:
        self.reason = self.reason or reason
        self.over.set()
        self.answer.cancel()  # nobody need wait for it any more


class Relay:
    """Serves the two calls of pipes. Its methods belong to the event loop of the gRPC server."""

    def __init__(self, switchboard: Switchboard, limits: Limits | None = None) -> None:
        self._switchboard = switchboard
        self._limits = limits or Limits()
        self._pipes: dict[int, _Pipe] = {}
        self._told: dict[tuple[NodeId, NodeId, str], Why] = {}

    def methods(self) -> dict[str, grpc.RpcMethodHandler]:
        """For a gRPC server whose connections are authenticated on both sides."""
        return {
            OPEN: grpc.stream_stream_rpc_method_handler(_answered(self._open)),
            TAKE: grpc.stream_stream_rpc_method_handler(_answered(self._take)),
        }

    def pairs(self) -> tuple[Pair, ...]:
        """Who speaks by relay at this moment."""
        return tuple({pipe.pair: None for pipe in self._pipes.values()})

    def expel(self, node: NodeId, reason: str) -> None:
        """End every pipe that this node called or took."""
        for pipe in list(self._pipes.values()):
            if node in pipe.nodes:
                pipe.end(reason)

    def close(self) -> None:
        """End every pipe, so that the server need not wait for them."""
        for pipe in list(self._pipes.values()):
            pipe.end("the coordinator stops")

    # -- the two calls --------------------------------------------------------------------------------------------

    async def _open(self, context: Context) -> None:
        pipe = self._wanted(context)
        self._check_room(pipe)
        number = secrets.randbits(62)  # unguessable, though only the node that was called may take it
        self._pipes[number] = pipe
        try:
            if pipe.pair.place.node:
                await self._to_node(pipe, number, context)
            else:
                await self._to_vault(pipe, context)
        finally:
            del self._pipes[number]
            pipe.end("the pipe ended")

    async def _to_vault(self, pipe: _Pipe, context: Context) -> None:
        limits, place = self._limits, pipe.pair.place
        try:
            async with asyncio.timeout(limits.dial_s):
                reader, writer = await asyncio.open_connection(place.host, place.port, limit=limits.chunk_nbytes)
        except OSError as error:
            raise _Denied(grpc.StatusCode.UNAVAILABLE, f"{place.words} does not answer: {error}") from None
        socket = SocketEnd(reader, writer, limits)
        try:
            await self._join(pipe, context, socket)
        finally:
            await socket.close()

    async def _to_node(self, pipe: _Pipe, number: int, context: Context) -> None:
        node = pipe.pair.place.node
        if not self._switchboard.call(node, number, pipe.name):
            raise _Denied(grpc.StatusCode.UNAVAILABLE, f"{node} is not connected")
        await asyncio.wait([pipe.answer], timeout=self._limits.take_s)
        if not pipe.answer.done() or pipe.answer.cancelled():
            raise _Denied(grpc.StatusCode.UNAVAILABLE, pipe.reason or f"{node} did not take the call")
        other = pipe.answer.result()
        await self._join(pipe, context, ContextEnd(other, self._limits))

    async def _join(self, pipe: _Pipe, context: Context, other: End) -> None:
        """Say that the pipe stands, and carry until an end is over or somebody ends it."""
        await context.send_initial_metadata((STANDS,))
        self._tell(pipe.pair)
        async with TaskGroup() as tasks:
            moving = tasks.create_task(pump(ContextEnd(context, self._limits), other, self._limits))
            watching = tasks.create_task(pipe.over.wait())
            await asyncio.wait({moving, watching}, return_when=asyncio.FIRST_COMPLETED)
            pipe.end(moving.result() if moving.done() else "")
            moving.cancel()
        if pipe.reason:
            raise _Denied(grpc.StatusCode.ABORTED, pipe.reason)

    async def _take(self, context: Context) -> None:
        pipe = self._called(context)
        await context.send_initial_metadata((STANDS,))
        if pipe.answer.done():
            raise _Denied(grpc.StatusCode.NOT_FOUND, "nobody calls any more")
        pipe.answer.set_result(context)
        try:
            await pipe.over.wait()
        finally:
            pipe.end("the engine's machine hung up")

    # -- who, whom, how many ----------------------------------------------------------------------------------------

    def _admitted(self, context: Context) -> NodeId:
        try:
            node = require_role(context.auth_context(), "node")
            self._switchboard.admitted(node)
        except PeerError as error:
            raise _Denied(grpc.StatusCode.PERMISSION_DENIED, str(error)) from None
        return node

    def _asker(self, context: Context) -> NodeId:
        """A node, or an operator's program: whoever serves a model calls its stages."""
        with contextlib.suppress(PeerError):
            return f"{OPERATOR}{require_role(context.auth_context(), 'operator')}"
        return self._admitted(context)

    def _wanted(self, context: Context) -> _Pipe:
        asker, metadata = self._asker(context), context.invocation_metadata()
        try:
            name = check_name(value_of(metadata, NAME))
            why = check_why(value_of(metadata, WHY))
        except PeerError as error:
            raise _Denied(grpc.StatusCode.INVALID_ARGUMENT, str(error)) from None
        try:
            place = self._switchboard.find(asker, name)
        except PeerError as error:
            raise _Denied(grpc.StatusCode.NOT_FOUND, str(error)) from None
        return _Pipe(Pair(asker, place, why), name, asyncio.get_running_loop().create_future())

    def _called(self, context: Context) -> _Pipe:
        node = self._admitted(context)
        try:
            number = value_of(context.invocation_metadata(), NUMBER)
        except PeerError as error:
            raise _Denied(grpc.StatusCode.INVALID_ARGUMENT, str(error)) from None
        pipe = self._pipes.get(int(number)) if _NUMBER.fullmatch(number) else None
        if pipe is None or pipe.pair.place.node != node or pipe.answer.done():
            raise _Denied(grpc.StatusCode.NOT_FOUND, "nobody calls any more")
        return pipe

    def _check_room(self, wanted: _Pipe) -> None:
        limits = self._limits
        if len(self._pipes) >= limits.pipes:
            raise _Denied(grpc.StatusCode.RESOURCE_EXHAUSTED, f"{limits.pipes} pipes are open already")
        for node in wanted.nodes:
            held = sum(node in pipe.nodes for pipe in self._pipes.values())
            if held >= limits.pipes_per_node:
                raise _Denied(grpc.StatusCode.RESOURCE_EXHAUSTED, f"{node} has {held} pipes already")

    def _tell(self, pair: Pair) -> None:
        """Once for each pair and reason: connections are made again and again."""
        key = (pair.asker, pair.place.node, pair.place.words)
        if self._told.get(key) is not pair.why:
            if len(self._told) >= TOLD_MAX:
                self._told.clear()
            self._told[key] = pair.why
            self._switchboard.piped(pair.asker, pair.place, pair.why)


def _answered(serve: Serve) -> Callable[[Any, Context], Awaitable[None]]:
    async def answer(_requests: Any, context: Context) -> None:
        try:
            await serve(context)
        except _Denied as denied:
            _LOG.info("no pipe for %s: %s", context.peer(), denied)
            await context.abort(denied.code, str(denied))

    return answer
