"""The I/O thread of one plane: it alone touches the sockets, and it never raises for what a peer sends.

A dedicated thread with a plain poller, because it is the fastest design and the same on every operating
system (the asyncio loop of Windows cannot watch a ZeroMQ socket). Other threads reach it through `soon` and `post`;
it reaches the event loop through the two calls it was given (`ask`, `tell`).
"""

from __future__ import annotations

import logging
import threading
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import zmq

from medley.protocol.errors import FrameError, Unavailable
from medley.transports.tensors.arrivals import Arrivals
from medley.transports.tensors.calls import Calls
from medley.transports.tensors.contract import Keeper, Limits, Peer
from medley.transports.tensors.curve import ZAP_ENDPOINT, Curve, zap_answer
from medley.transports.tensors.links import Link, bound
from medley.transports.tensors.outbound import Attempt, Call
from medley.transports.tensors.posts import Lost, Postbox, Posted, Posts
from medley.transports.tensors.refusals import Refusals
from medley.transports.tensors.transfers import Host, Transfer
from medley.transports.tensors.ways import Choice, Ways
from medley.transports.tensors.wire import (
    BODY_NBYTES_MAX,
    Frame,
    Type,
    decode_frame,
)

log = logging.getLogger(__name__)

TICK_S = 0.25
BLOCKED_TICK_S = 0.002
BATCH_FRAMES = 16
FAULTS_MAX = 100
Ask = Callable[[Callable[[], Awaitable[Any]], Callable[[Any], None]], None]


class Engine:
    """Sockets and thread of one plane. What is not said to be for others runs on the I/O thread."""

    def __init__(
        self,
        *,
        identity: Curve | None,
        allow: Callable[[bytes], bool] | None,
        limits: Limits,
        handler: Keeper,
        posted: Posted | None,
        lost: Lost | None,
        ways: Ways,
        ask: Ask,
        tell: Callable[[Callable[[], None]], None],
        ended: Callable[[], None],
        clock: Callable[[], float],
    ) -> None:
        self.counters: Counter[str] = Counter()
        self._identity, self._allow, self._limits, self._handler = identity, allow, limits, handler
        self._ways = ways
        self._postbox = Postbox(limits, self.counters, posted, lost)
        self._blocked = False
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._dirty: dict[Transfer, None] = {}
        self._load: Counter[str] = Counter()
        self._host = Host(
            limits, self.counters, self._load, lambda work, then: self._ask(ask, work, then), tell, self._mark
        )
        self._commands: deque[Callable[[float], None]] = deque()
        self._revoked: set[bytes] = set()
        self._wake_lock = threading.Lock()
        self._woken = False
        self._tell, self._ended, self._clock = tell, ended, clock
        self._running = True
        self._next_tick = 0.0
        self._thread = threading.Thread(target=self._run, name="medley-tensors", daemon=True)

    # -- called on the event loop ------------------------------------------------------------------

    def bind(self, endpoint: str) -> str:
        """Bind before `start`; the endpoint with its port filled in. `zmq.ZMQError` when it is taken."""
        self._router = self._context.socket(zmq.ROUTER)
        bound(self._router, self._limits)
        self._router.router_mandatory = 1
        self._router.router_handover = 0
        self._zap: zmq.Socket[bytes] | None = None
        if self._identity is not None:
            self._zap = self._context.socket(zmq.REP)
            self._zap.bind(ZAP_ENDPOINT)
            self._identity.apply_as_server(self._router)
        self._router.ipv6 = "[" in endpoint
        self._refusals = Refusals(self._router, self.counters)
        self._router.bind(endpoint)
        self._arrivals = Arrivals(self._host, self._handler, self._router, self._identity is not None)
        around = (self._host, self._context, self._identity, Choice(self._ways))
        self._calls = Calls(*around)
        self._posts = Posts(*around, self._wake, self._postbox.lost)
        self._wake_out, self._wake_in = self._context.socket(zmq.PAIR), self._context.socket(zmq.PAIR)
        self._wake_in.bind("inproc://wake")
        self._wake_out.connect("inproc://wake")
        return self._router.getsockopt_string(zmq.LAST_ENDPOINT)

    def abandon(self) -> None:
        """Give the sockets back of an engine that was never started."""
        self._context.destroy(0)

    def start(self) -> None:
        self._thread.start()

    # -- called on any thread ----------------------------------------------------------------------

    def soon(self, command: Callable[[float], None]) -> None:
        """Have `command(now)` run on the I/O thread soon."""
        self._commands.append(command)
        self._wake()

    def post(self, peer: Peer, message: bytes) -> bool:
        """Send it, or have it sent soon. False: there is no room for it, or the engine has ended."""
        return self._running and self._posts.post(peer, message)

    def connected(self, peer: Peer) -> bool:
        return self._posts.connected(peer)

    def backlog(self, peer: Peer) -> int:
        return self._posts.backlog(peer)

    def _wake(self) -> None:
        """What was appended before this is seen: the thread forgets the wake-up before it looks at its queues."""
        with self._wake_lock:
            if self._running and not self._woken:
                self._woken = True
                self._wake_out.send(b"", zmq.DONTWAIT)

    @property
    def running(self) -> bool:
        return self._running

    def stop(self) -> None:
        self.soon(self._stop)

    def join(self) -> None:
        self._thread.join()

    # -- commands ----------------------------------------------------------------------------------

    def call(self, peer: Peer, make: Callable[[Attempt], Call], now: float) -> Call:
        return self._calls.call(peer, make, now)

    def cancel(self, calls: Iterable[Call]) -> None:
        self._calls.cancel(calls)

    def revoke(self, key: bytes, now: float) -> None:
        """Refuse the key from now on and end all that it has open."""
        self._revoked.add(key)
        self._arrivals.revoke(key, now)
        self._calls.revoke(key)
        self._posts.revoke(key)

    def admit(self, key: bytes) -> None:
        """Forget that the key was revoked."""
        self._revoked.discard(key)
        self._arrivals.admit(key)
        self._calls.admit(key)
        self._posts.admit(key)

    # -- the loop ----------------------------------------------------------------------------------

    def _run(self) -> None:
        """The outermost edge of the thread: a fault of ours in one turn is logged and the next turn goes on."""
        try:
            while self._running:
                try:
                    self._turn()
                except Exception:
                    self._faulted()
        finally:
            self._end()

    def _faulted(self) -> None:
        self.counters["faults"] += 1
        log.exception("a turn of the tensor plane failed")
        if self.counters["faults"] >= FAULTS_MAX:
            log.critical("the tensor plane gives up after %d faults", FAULTS_MAX)
            self._stop(self._clock())

    def _turn(self) -> None:
        ready = self._poll()
        now = self._clock()
        if self._wake_in in ready:
            self._drain_wake()
        while self._commands:
            self._commands.popleft()(now)
        if self._zap is not None and self._zap in ready:
            self._answer_zap()
        if self._refusals.monitor in ready:
            self._refusals.read()
        if self._router in ready:
            self._read(self._router, None, now)
        for dialling in (self._posts.dialling, self._calls.dialling):
            for dialled in dialling.connections():
                if dialled.monitor in ready:
                    dialling.watch(dialled, now)
        self._blocked = self._posts.pump(now)
        for dialled in self._calls.dialling.connections():
            if dialled.link.socket in ready and not dialled.link.socket.closed:
                self._read(dialled.link.socket, dialled.link, now)
        self._flush(now)
        if now >= self._next_tick:
            self._next_tick = now + TICK_S
            self._tick(now)
        self._calls.begin(now)

    def _poll(self) -> set[zmq.Socket[bytes]]:
        sockets = [self._wake_in, self._router, self._refusals.monitor]
        if self._zap is not None:
            sockets.append(self._zap)
        for dialled in self._calls.dialling.connections():
            sockets += (dialled.monitor, dialled.link.socket)
        sockets += (dialled.monitor for dialled in self._posts.dialling.connections())
        timeout_s = BLOCKED_TICK_S if self._dirty or self._blocked else max(0.0, self._next_tick - self._clock())
        ready = zmq.zmq_poll([(socket, zmq.POLLIN) for socket in sockets], int(timeout_s * 1000) + 1)
        return {socket for socket, _ in ready}  # type: ignore[misc]

    def _drain_wake(self) -> None:
        try:
            while True:
                self._wake_in.recv(zmq.DONTWAIT)
        except zmq.Again:
            self._woken = False

    def _mark(self, transfer: Transfer) -> None:
        self._dirty[transfer] = None

    def _flush(self, now: float) -> None:
        dirty, self._dirty = self._dirty, {}
        for transfer in dirty:
            transfer.flush(now)

    def _tick(self, now: float) -> None:
        self._arrivals.tick(now)
        self._calls.tick(now)
        self._posts.tick(now)

    # -- reading -----------------------------------------------------------------------------------

    def _read(self, socket: zmq.Socket[bytes], link: Link | None, now: float) -> None:
        try:
            for _ in range(BATCH_FRAMES):
                self._read_message(socket, link, now)
        except zmq.Again:
            return

    def _read_message(self, socket: zmq.Socket[bytes], link: Link | None, now: float) -> None:
        route = socket.recv(zmq.DONTWAIT) if link is None else b""
        head = socket.recv(zmq.DONTWAIT, copy=False)
        more = head.more
        try:
            frame = decode_frame(head.buffer)
            if link is None and frame.type is Type.POST:
                self._postbox.take(self._arrivals.poster(head), frame, head)
            else:
                link = link or self._arrivals.link_of(route, head, frame, now)
                link.heard_at = now
                if frame.type is Type.CHUNK:
                    more = self._chunk(socket, link, frame, more, now)
                else:
                    body = socket.recv(zmq.DONTWAIT, copy=False) if more else None
                    more = body is not None and body.more
                    self._frame(link, frame, b"" if body is None else _bounded(body), now)
        except FrameError as error:
            self.counters["frames_refused"] += 1
            log.debug("refused a frame: %s", error)
        while more:
            rest = socket.recv(zmq.DONTWAIT, copy=False)
            more = rest.more

    def _chunk(self, socket: zmq.Socket[bytes], link: Link, frame: Frame, more: bool, now: float) -> bool:
        """Receive a chunk straight into its transfer's buffer; whether parts of the message remain."""
        transfer = link.transfers.get(frame.transfer)
        view = None if transfer is None or transfer.incoming is None else transfer.incoming.landing(frame)
        if transfer is None:
            self._frame(link, frame, b"", now)
        elif view is None:
            self.counters["chunks_refused"] += 1
        if transfer is None or view is None or not more:
            return more
        nbytes = socket.recv_into(view, flags=zmq.DONTWAIT)
        transfer.landed(frame, nbytes, view, now)
        return bool(socket.rcvmore)

    def _frame(self, link: Link, frame: Frame, body: bytes, now: float) -> None:
        transfer = link.transfers.get(frame.transfer)
        if transfer is not None:
            transfer.frame(frame, body, now)
        elif link.prefix:
            self._arrivals.unknown(link, frame, body, now)
        else:
            self.counters["frames_unknown"] += 1

    # -- authentication, handler calls, the end ----------------------------------------------------

    def _answer_zap(self) -> None:
        assert self._zap is not None
        try:
            while True:
                self._answer_one(self._zap, self._zap.recv_multipart(zmq.DONTWAIT))
        except zmq.Again:
            return

    def _answer_one(self, zap: zmq.Socket[bytes], request: list[bytes]) -> None:
        """Answer in any case: a request left open would block every later one."""
        answer = zap_answer(request, lambda key: False)
        try:
            answer = zap_answer(request, self._admits)
        finally:
            self.counters["handshakes_refused"] += answer[2] != b"200"
            zap.send_multipart(answer)

    def _admits(self, key: bytes) -> bool:
        return key not in self._revoked and self._allow is not None and self._allow(key)

    def _ask(self, ask: Ask, work: Callable[[], Awaitable[Any]], then: Callable[[Any, float], None]) -> None:
        self._load["handler_calls"] += 1

        def answered(answer: Any) -> None:
            self.soon(lambda now: self._then(then, answer, now))

        ask(work, answered)

    def _then(self, then: Callable[[Any, float], None], answer: Any, now: float) -> None:
        self._load["handler_calls"] -= 1
        if isinstance(answer, Exception):
            self.counters["handler_errors"] += 1
        then(answer, now)

    def _stop(self, now: float) -> None:
        self._running = False
        self._calls.end(Unavailable("the tensor plane was closed"))
        self._arrivals.end(now)

    def _end(self) -> None:
        with self._wake_lock:
            self._running = False
        self._calls.dialling.close()
        self._posts.dialling.close()
        self._refusals.close()
        self._context.destroy(0)
        self._tell(self._ended)


def _bounded(body: zmq.Frame) -> bytes:
    if len(body) > BODY_NBYTES_MAX:
        raise FrameError(f"a body of {len(body)} bytes is over {BODY_NBYTES_MAX}")
    return body.bytes
