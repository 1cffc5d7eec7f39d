"""The asyncio face of the tensor plane: `put` and `get` objects, a handler that peers' transfers are put to; `post`.

Handler calls run in one task group that belongs to the plane; closing the plane ends it. All socket work is
on the engine's thread.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType
from typing import Any, Self

import zmq

from medley.concurrency import TaskGroup
from medley.protocol.errors import Unavailable, UserError
from medley.protocol.hosts import is_loopback
from medley.transports.tensors.contract import Buffer, Keeper, Limits, Peer
from medley.transports.tensors.curve import Curve
from medley.transports.tensors.engine import Engine
from medley.transports.tensors.flow import Gather, as_bytes_view
from medley.transports.tensors.heap import keep_freed_chunks
from medley.transports.tensors.outbound import Attempt, Call, Get, Progress, Put
from medley.transports.tensors.posts import Lost, Posted, message_of
from medley.transports.tensors.ways import Ways
from medley.transports.tensors.wire import Header

_ENDPOINT = re.compile(r"tcp://(\[[0-9A-Fa-f:.%a-z]+\]|[A-Za-z0-9._-]+):([0-9]{1,5})")
log = logging.getLogger(__name__)

Work = Callable[[], Awaitable[Any]]
Then = Callable[[Any], None]
Allow = Callable[[bytes], bool]
Into = Buffer | Callable[[int], Buffer]


class TensorPlane:
    """One endpoint. Open it with `await TensorPlane.open(...)`, close it once, use it from that event loop only.

    But `post`, `connected`, `backlog` and `counters` are for any thread.
    """

    def __init__(
        self,
        identity: Curve | None,
        limits: Limits,
        allow: Allow | None,
        handler: Keeper,
        posted: Posted | None,
        lost: Lost | None,
        ways: Ways,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._work: asyncio.Queue[tuple[Work, Then] | None] = asyncio.Queue()
        self._identity = identity
        self._limits = limits
        self._engine = Engine(
            identity=identity,
            allow=allow,
            limits=limits,
            handler=handler,
            posted=posted,
            lost=lost,
            ways=ways,
            ask=self._ask,
            tell=self._tell,
            ended=self._ended,
            clock=self._loop.time,
        )
        self._waiting: set[asyncio.Future[Any]] = set()
        self._serving: concurrent.futures.Future[None] | None = None
        self.endpoint = ""
        self.public_key = identity.public_key if identity else None

    @classmethod
    async def open(
        cls,
        host: str,
        port: int = 0,
        *,
        identity: Curve | None,
        limits: Limits | None = None,
        allow: Allow | None = None,
        handler: Keeper,
        posted: Posted | None = None,
        lost: Lost | None = None,
        ways: Ways | None = None,
    ) -> Self:
        """Bind `host:port` (0: any free port) and serve `handler`.

        Without an identity nothing is encrypted and nobody is authenticated, so only a loopback address is
        served. `allow(public_key)` admits a connecting key; it runs on the I/O thread and must be quick. None
        admits nobody. `ways` says how peers are reached; None: directly. Raises `UserError` for an address that
        cannot be served.

        `posted(public_key, payload)` gets what peers post; None refuses it. `lost(peer)` is told when the connection
        to a peer that we called or posted to breaks. Both run on the I/O thread and must be quick; the payload stays
        valid for as long as it is referred to.
        """
        if identity is None and not is_loopback(host):
            raise UserError(f"the tensor plane serves {host} only with a CURVE identity; without one use 127.0.0.1")
        keep_freed_chunks()
        plane = cls(identity, limits or Limits(), allow, handler, posted, lost, ways or Ways())
        bracketed = f"[{host}]" if ":" in host else host
        try:
            plane.endpoint = plane._engine.bind(f"tcp://{bracketed}:{port or '*'}")
        except zmq.ZMQError as error:
            plane._engine.abandon()
            raise UserError(f"the tensor plane cannot listen on {host}:{port}: {error}") from error
        plane._engine.start()
        plane._serving = asyncio.run_coroutine_threadsafe(plane._serve(), plane._loop)
        return plane

    async def put(
        self, peer: Peer, header: Header, buffers: Sequence[Buffer], progress: Progress | None = None
    ) -> bytes:
        """Send the bytes of `buffers` and return the peer's reply body.

        Lives through lost connections and a restarted receiver, continuing where the receiver is. The buffers
        must not change until this returns. `progress(done, total)` is called on the event loop. Raises
        `Refused` when the peer says no and `Unavailable` when there is no progress for a time that fits the
        link.
        """
        gather = Gather(buffers)
        if gather.nbytes != header.nbytes:
            raise ValueError(f"the header says {header.nbytes} bytes, the buffers have {gather.nbytes}")
        reply: bytes = await self._call(peer, lambda attempt, answer: Put(attempt, header, gather, answer, progress))
        return reply

    async def get(self, peer: Peer, header: Header, into: Into) -> memoryview:
        """Fetch the object the peer's handler finds for `header` and return the filled view of bytes.

        `into` is a writable buffer of exactly its size, or is called on the event loop with the size (already
        checked against the limits) to make one. Raises as `put`, and `ValueError` when the buffer does not
        fit.
        """
        make: Callable[[int], Buffer] = into if callable(into) else (lambda total: into)
        whole: memoryview = await self._call(
            peer, lambda attempt, answer: Get(attempt, header, lambda n: as_bytes_view(make(n)), answer)
        )
        return whole

    def post(self, peer: Peer, buffers: Sequence[Buffer]) -> bool:
        """Have the bytes of `buffers` sent as one message that nobody answers. For any thread; it never waits.

        The buffers may be used again at once. Posts to one peer arrive in this order while the connection stands;
        what is under way when it breaks is lost. False: there is no room for it, or the plane has ended. Raises
        `ValueError` for more than `Limits.post_nbytes`, and `UserError` for a peer that this plane cannot speak to.
        """
        self._check(peer)
        return self._engine.post(peer, message_of(buffers, self._limits.post_nbytes))

    def connected(self, peer: Peer) -> bool:
        """Whether a connection stands on which we post to the peer."""
        return self._engine.connected(peer)

    def backlog(self, peer: Peer) -> int:
        """Bytes posted to the peer that are still here. A post under 64 KiB is gone once ZeroMQ has it."""
        return self._engine.backlog(peer)

    def revoke(self, public_key: bytes) -> None:
        """Refuse this key from now on, and end every transfer and connection it has with us."""
        self._engine.soon(lambda now: self._engine.revoke(public_key, now))

    def admit(self, public_key: bytes) -> None:
        """Take back a `revoke`: from now on `allow` decides about this key again."""
        self._engine.soon(lambda now: self._engine.admit(public_key))

    def counters(self) -> Counter[str]:
        """A copy of what was counted since opening: bytes sent, objects, refused frames, damaged chunks, and so on."""
        return Counter(self._engine.counters)

    async def close(self) -> None:
        """End every transfer (callers see `Unavailable`), cancel handler calls, give the sockets back."""
        serving, self._serving = self._serving, None
        if serving is None:
            return
        self._engine.stop()
        await asyncio.to_thread(self._engine.join)
        self._ended()
        self._work.put_nowait(None)
        await asyncio.wrap_future(serving)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _call(self, peer: Peer, make: Callable[[Attempt, Callable[[Any], None]], Call]) -> Any:
        if self._serving is None:
            raise RuntimeError("the tensor plane is closed")
        if not self._engine.running:
            raise Unavailable("the tensor plane has ended")
        self._check(peer)
        future: asyncio.Future[Any] = self._loop.create_future()
        begun: list[Call] = []

        def answer(value: Any) -> None:
            self._tell(lambda: _resolve(future, value))

        def begin(now: float) -> None:
            try:
                begun.append(self._engine.call(peer, lambda attempt: make(attempt, answer), now))
            except zmq.ZMQError as error:
                answer(Unavailable(f"{peer.endpoint}: {error}"))

        self._waiting.add(future)
        self._engine.soon(begin)
        try:
            return await future
        except asyncio.CancelledError:
            self._engine.soon(lambda now: self._engine.cancel(begun))
            raise
        finally:
            self._waiting.discard(future)

    def _check(self, peer: Peer) -> None:
        if self._identity is not None and peer.public_key is None:
            raise UserError(f"{peer.endpoint}: a plane with a CURVE identity connects only to peers whose key it knows")
        if self._identity is None and peer.public_key is not None:
            raise UserError(f"{peer.endpoint} wants CURVE, and this plane was opened without an identity")
        if not _ENDPOINT.fullmatch(peer.endpoint):
            raise UserError(f"'{peer.endpoint}' is not a tensor endpoint; write tcp://HOST:PORT")

    def _ended(self) -> None:
        for future in list(self._waiting):
            _resolve(future, Unavailable("the tensor plane has ended"))

    def _ask(self, work: Work, then: Then) -> None:
        self._tell(lambda: self._work.put_nowait((work, then)))

    def _tell(self, call: Callable[[], Any]) -> None:
        try:
            self._loop.call_soon_threadsafe(call)
        except RuntimeError:
            log.debug("the event loop closed before the tensor plane did")

    async def _serve(self) -> None:
        """Run the keeper's calls until the plane is closed; `close` awaits the end and sees any fault."""
        async with TaskGroup() as group:
            running: set[asyncio.Task[None]] = set()
            while (work := await self._work.get()) is not None:
                task = group.create_task(_answer(*work, self._limits.wait_s))
                running.add(task)
                task.add_done_callback(running.discard)
            for task in running:
                task.cancel()


async def _answer(work: Work, then: Then, wait_s: float) -> None:
    """The outermost edge around the handler: what it raises becomes an answer, never the end of the plane."""
    try:
        async with asyncio.timeout(wait_s):
            answer = await work()
    except asyncio.CancelledError as error:
        then(Unavailable(f"the handler was cancelled: {error}"))
        raise
    except Exception as error:
        log.exception("the tensor handler failed")
        answer = error
    then(answer)


def _resolve(future: asyncio.Future[Any], value: Any) -> None:
    if future.done():
        return
    if isinstance(value, Exception):
        future.set_exception(value)
    else:
        future.set_result(value)
