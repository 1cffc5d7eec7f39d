"""The I/O thread of one plane: it alone touches the sockets, and it never raises for what a peer sends.

A dedicated thread with a plain poller, because it is the fastest design and the same on every operating
system (the asyncio loop of Windows cannot watch a ZeroMQ socket). The event loop reaches it through `post`;
it reaches the event loop through the two calls it was given (`ask`, `tell`).
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import zmq
from zmq.utils.monitor import parse_monitor_message

from medley.protocol.errors import FrameError, Unavailable
from medley.transports.tensors.contract import Handler, Limits, Peer, Refused
from medley.transports.tensors.curve import ZAP_ENDPOINT, Curve, zap_answer
from medley.transports.tensors.inbound import Reception, Supply
from medley.transports.tensors.links import Dialled, Link, bound, dial
from medley.transports.tensors.outbound import Attempt, Call
from medley.transports.tensors.transfers import Host, Transfer
from medley.transports.tensors.wire import (
    BODY_NBYTES_MAX,
    Frame,
    Header,
    Type,
    decode_frame,
    decode_header,
    identity_of,
)

log = logging.getLogger(__name__)

TICK_S = 0.25
BLOCKED_TICK_S = 0.002
BATCH_FRAMES = 16
IDLE_LINK_S = 60.0
FAULTS_MAX = 100
Ask = Callable[[Callable[[], Awaitable[Any]], Callable[[Any], None]], None]


class Engine:
    """Sockets, links and transfers of one plane. Every method but `post`, `start` and `join` runs on the I/O
    thread.
    """

    def __init__(
        self,
        *,
        identity: Curve | None,
        allow: Callable[[bytes], bool] | None,
        limits: Limits,
        handler: Handler,
        ask: Ask,
        tell: Callable[[Callable[[], None]], None],
        ended: Callable[[], None],
    ) -> None:
        self.counters: Counter[str] = Counter()
        self._identity, self._allow, self._limits, self._handler = identity, allow, limits, handler
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._dirty: dict[Transfer, None] = {}
        self._host = Host(limits, self.counters, lambda work, then: self._ask(ask, work, then), tell, self._mark)
        self._commands: deque[Callable[[float], None]] = deque()
        self._inbound: dict[bytes, Link] = {}
        self._dialled: dict[Peer, Dialled] = {}
        self._calls: dict[Call, None] = {}
        self._receptions: dict[bytes, Reception] = {}
        self._revoked: set[bytes] = set()
        self._wake_lock = threading.Lock()
        self._next_transfer = 1
        self._asking = 0
        self._tell, self._ended = tell, ended
        self._running = True
        self._next_tick = 0.0
        self._thread = threading.Thread(target=self._run, name="medley-tensors", daemon=True)

    # -- called on the event loop ------------------------------------------------------------------

    def bind(self, endpoint: str) -> str:
        """Bind before `start`; the endpoint with its port filled in. `zmq.ZMQError` when the address is
        taken.
        """
        self._router = self._context.socket(zmq.ROUTER)
        bound(self._router, self._limits)
        self._router.router_mandatory = 1
        self._router.router_handover = 0
        self._zap: zmq.Socket[bytes] | None = None
        if self._identity is not None:
            self._zap = self._context.socket(zmq.REP)
            self._zap.bind(ZAP_ENDPOINT)
            self._identity.apply_as_server(self._router)
        self._router.bind(endpoint)
        self._wake_out, self._wake_in = self._context.socket(zmq.PAIR), self._context.socket(zmq.PAIR)
        self._wake_in.bind("inproc://wake")
        self._wake_out.connect("inproc://wake")
        return self._router.getsockopt_string(zmq.LAST_ENDPOINT)

    def abandon(self) -> None:
        """Give the sockets back of an engine that was never started."""
        self._context.destroy(0)

    def start(self) -> None:
        self._thread.start()

    def post(self, command: Callable[[float], None]) -> None:
        """Have `command(now)` run on the I/O thread soon. Only the event loop's thread may call this."""
        self._commands.append(command)
        with self._wake_lock:
            if self._running:
                # Again means that enough wake-ups are under way already
                with contextlib.suppress(zmq.Again):
                    self._wake_out.send(b"", zmq.DONTWAIT)

    @property
    def running(self) -> bool:
        return self._running

    def stop(self) -> None:
        self.post(self._stop)

    def join(self) -> None:
        self._thread.join()

    # -- commands ----------------------------------------------------------------------------------

    def call(self, peer: Peer, make: Callable[[Attempt], Call], now: float) -> Call | None:
        """Open a connection where none is and start a call on it."""
        if peer.public_key is not None and peer.public_key in self._revoked:
            make(Attempt(self._dial(peer), self._host, now, now)).fail(Refused("this peer's key was revoked"))
            return None
        call = make(Attempt(self._dial(peer), self._host, now, now))
        self._calls[call] = None
        self._begin_calls(now)
        return call

    def cancel(self, begun: Iterable[Call | None]) -> None:
        for call in begun:
            if call is not None:
                call.fail(Refused("cancelled"))
                self._calls.pop(call, None)

    def revoke(self, key: bytes, now: float) -> None:
        """Refuse the key from now on and end all that it has open."""
        self._revoked.add(key)
        for link in [link for link in self._inbound.values() if link.key == key]:
            for number in list(link.transfers):
                link.refuse(number, "this key was revoked")
            self._lose_inbound(link, now)
        for reception in [one for one in self._receptions.values() if one.key == key]:
            reception.drop()
        for call in [one for one in self._calls if one.attempt.dialled.peer.public_key == key]:
            call.fail(Refused("this peer's key was revoked"))
            self._calls.pop(call, None)
        for peer in [peer for peer in self._dialled if peer.public_key == key]:
            self._dialled.pop(peer).close()

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
            self._stop(time.monotonic())

    def _turn(self) -> None:
        ready = self._poll()
        now = time.monotonic()
        if self._wake_in in ready:
            self._drain_wake()
        while self._commands:
            self._commands.popleft()(now)
        if self._zap is not None and self._zap in ready:
            self._answer_zap()
        if self._router in ready:
            self._read(self._router, None, now)
        for dialled in list(self._dialled.values()):
            if dialled.monitor in ready:
                self._watch(dialled, now)
            if dialled.link.socket in ready and not dialled.link.socket.closed:
                self._read(dialled.link.socket, dialled.link, now)
        self._flush(now)
        if now >= self._next_tick:
            self._next_tick = now + TICK_S
            self._tick(now)
        self._begin_calls(now)

    def _poll(self) -> set[zmq.Socket[bytes]]:
        sockets = [self._wake_in, self._router]
        if self._zap is not None:
            sockets.append(self._zap)
        for dialled in self._dialled.values():
            sockets += (dialled.monitor, dialled.link.socket)
        timeout_s = BLOCKED_TICK_S if self._dirty else max(0.0, self._next_tick - time.monotonic())
        ready = zmq.zmq_poll([(socket, zmq.POLLIN) for socket in sockets], int(timeout_s * 1000) + 1)
        return {socket for socket, _ in ready}  # type: ignore[misc]

    def _drain_wake(self) -> None:
        try:
            while True:
                self._wake_in.recv(zmq.DONTWAIT)
        except zmq.Again:
            return

    def _mark(self, transfer: Transfer) -> None:
        self._dirty[transfer] = None

    def _flush(self, now: float) -> None:
        dirty, self._dirty = self._dirty, {}
        for transfer in dirty:
            transfer.flush(now)

    def _tick(self, now: float) -> None:
        for reception in list(self._receptions.values()):
            reception.tick(now)
        for link in list(self._inbound.values()):
            link.flush()
            for transfer in list(link.transfers.values()):
                if isinstance(transfer, Supply):
                    transfer.tick(now)
            if link.lost:
                self._lose_inbound(link, now)
            elif not link.transfers and now - link.heard_at > IDLE_LINK_S:
                del self._inbound[link.prefix[0]]
        for call in list(self._calls):
            call.tick(now)
        self._tick_dialled(now)
        self._expire_parked(now)

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
            if link is None:
                link = self._inbound_link(route, head, frame, now)
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

    def _inbound_link(self, route: bytes, head: zmq.Frame, frame: Frame, now: float) -> Link:
        key = bytes.fromhex(str(head.get("User-Id"))) if self._identity is not None else b""
        link = self._inbound.get(route)
        if link is None or link.key != key or link.lost:
            if link is not None:
                self._lose_inbound(link, now)
            link = Link(self._router, (route,), key, self.counters)
            if frame.type in (Type.OFFER, Type.ASK) and len(self._inbound) < 4 * self._limits.transfers:
                self._inbound[route] = link
        if key in self._revoked:
            link.refuse(frame.transfer, "this key was revoked")
            raise FrameError("a frame from a revoked key")
        return link

    def _chunk(self, socket: zmq.Socket[bytes], link: Link, frame: Frame, more: bool, now: float) -> bool:
        """Receive a chunk straight into its transfer's buffer; whether parts of the message remain."""
        transfer = link.transfers.get(frame.transfer)
        view = None if transfer is None or transfer.incoming is None else transfer.incoming.landing(frame)
        if transfer is None and link.prefix:
            self.counters["chunks_unknown"] += 1
            link.refuse(frame.transfer, "no such transfer", busy=True)
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
        elif not link.prefix:
            self.counters["frames_unknown"] += 1
        elif frame.type in (Type.OFFER, Type.ASK):
            self._open(link, frame, decode_header(body), now)
        elif frame.type is Type.CREDIT:
            self.counters["frames_unknown"] += 1
            link.refuse(frame.transfer, "no such transfer", busy=True)
        else:
            self.counters["frames_unknown"] += 1

    # -- transfers that peers open -----------------------------------------------------------------

    def _open(self, link: Link, frame: Frame, header: Header, now: float) -> None:
        limits = self._limits
        if len(link.transfers) >= limits.transfers_per_peer or self._asking >= limits.transfers:
            link.refuse(frame.transfer, "too many open transfers", busy=True)
        elif frame.type is Type.ASK:
            most = min(limits.chunk_nbytes, frame.length or limits.chunk_nbytes)
            Supply(self._host, self._handler, header, link, frame.transfer, most, now).open(now)
        else:
            self._open_reception(link, frame.transfer, header, now)

    def _open_reception(self, link: Link, transfer: int, header: Header, now: float) -> None:
        limits = self._limits
        name = link.key + identity_of(header)
        reception = self._receptions.get(name)
        if reception is not None:
            reception.attach(link, transfer, now)
            return
        if header.nbytes > limits.object_nbytes:
            link.refuse(transfer, f"{header.nbytes} bytes are more than the {limits.object_nbytes} taken here")
            return
        taken = sum(one.header.nbytes for one in self._receptions.values())
        if taken + header.nbytes > limits.inbound_nbytes or len(self._receptions) >= limits.transfers:
            link.refuse(transfer, "no room for another object now", busy=True)
            return
        reception = Reception(self._host, self._handler, link.key, header, lambda _: self._forget(name))
        self._receptions[name] = reception
        reception.attach(link, transfer, now)
        reception.open(now)

    def _forget(self, name: bytes) -> None:
        self._receptions.pop(name, None)

    def _expire_parked(self, now: float) -> None:
        parked = [one for one in self._receptions.values() if one.link is None and one.incoming and not one.finishing]
        parked.sort(key=lambda one: one.since)
        surplus = len(parked) - self._limits.parked
        for index, reception in enumerate(parked):
            if index < surplus or now - reception.since > self._limits.parked_s:
                self.counters["parked_dropped"] += 1
                reception.drop()

    def _lose_inbound(self, link: Link, now: float) -> None:
        link.lost = True
        self._inbound.pop(link.prefix[0], None)
        for transfer in list(link.transfers.values()):
            transfer.cut(now)

    # -- connections that we open ------------------------------------------------------------------

    def _dial(self, peer: Peer) -> Dialled:
        dialled = self._dialled.get(peer)
        if dialled is None:
            dialled = dial(self._context, peer, self._identity, self._limits, self.counters)
            dialled.link.heard_at = time.monotonic()
            self._dialled[peer] = dialled
        return dialled

    def _watch(self, dialled: Dialled, now: float) -> None:
        try:
            while True:
                event = parse_monitor_message(dialled.monitor.recv_multipart(zmq.DONTWAIT))["event"]
                self._connection_event(dialled, event, now)
        except zmq.Again:
            return

    def _connection_event(self, dialled: Dialled, event: int, now: float) -> None:
        match event:
            case zmq.EVENT_HANDSHAKE_SUCCEEDED:
                dialled.up, dialled.remake_at, dialled.failures = True, None, 0
                dialled.why = "it does not answer"
            case zmq.EVENT_DISCONNECTED:
                self._lose_dialled(dialled, now)
                dialled.why = "the connection is lost and does not come back"
            case _:
                dialled.failures += 1
                dialled.remake_at = now + min(1.0, 0.1 * 2**dialled.failures)
                dialled.why = "the handshake fails (is our key admitted there, and is theirs the right one?)"

    def _lose_dialled(self, dialled: Dialled, now: float) -> None:
        if dialled.up:
            self.counters["connections_lost"] += 1
        dialled.up = False
        dialled.link.outbox.clear()
        for transfer in list(dialled.link.transfers.values()):
            transfer.cut(now)

    def _tick_dialled(self, now: float) -> None:
        used = {call.attempt.dialled.peer for call in self._calls}
        for peer, dialled in list(self._dialled.items()):
            dialled.link.flush()
            silent, dialled.suspect = dialled.suspect and now - dialled.link.heard_at, False
            if dialled.remake_at is not None and now >= dialled.remake_at and not dialled.up:
                self._remake(dialled)
            elif (
                dialled.link.lost
                or silent > self._limits.floor_s
                or (peer not in used and now - dialled.link.heard_at > IDLE_LINK_S)
            ):
                self._lose_dialled(dialled, now)
                self._remake(dialled) if peer in used else self._dialled.pop(peer).close()

    def _remake(self, dialled: Dialled) -> None:
        """A socket that ZAP refused never tries again by itself: make it anew for the calls that wait."""
        fresh = dial(self._context, dialled.peer, self._identity, self._limits, self.counters)
        dialled.close()
        fresh.link.pace, fresh.link.heard_at = dialled.link.pace, dialled.link.heard_at
        dialled.link, dialled.monitor, dialled.remake_at = fresh.link, fresh.monitor, None

    def _begin_calls(self, now: float) -> None:
        for call in [call for call in self._calls if call.attempt.finished]:
            del self._calls[call]
        for call in self._calls:
            if call.attempt.wanted(now):
                self._next_transfer += 1
                call.begin(self._next_transfer, now)

    # -- authentication, handler calls, the end ----------------------------------------------------

    def _answer_zap(self) -> None:
        assert self._zap is not None
        try:
            while True:
                answer = zap_answer(self._zap.recv_multipart(zmq.DONTWAIT), self._admits)
                self.counters["handshakes_refused"] += answer[2] != b"200"
                self._zap.send_multipart(answer)
        except zmq.Again:
            return

    def _admits(self, key: bytes) -> bool:
        if key in self._revoked or self._allow is None:
            return False
        try:
            return self._allow(key)
        except Exception:  # the caller's code; a request without an answer would block every later one
            log.exception("asking whether a key is admitted failed")
            return False

    def _ask(self, ask: Ask, work: Callable[[], Awaitable[Any]], then: Callable[[Any, float], None]) -> None:
        self._asking += 1

        def answered(answer: Any) -> None:
            self.post(lambda now: self._then(then, answer, now))

        ask(work, answered)

    def _then(self, then: Callable[[Any, float], None], answer: Any, now: float) -> None:
        self._asking -= 1
        if isinstance(answer, Exception):
            self.counters["handler_errors"] += 1
        then(answer, now)

    def _stop(self, now: float) -> None:
        self._running = False
        for call in list(self._calls):
            call.fail(Unavailable("the tensor plane was closed"))
        for link in list(self._inbound.values()):
            self._lose_inbound(link, now)
        for reception in list(self._receptions.values()):
            reception.drop()

    def _end(self) -> None:
        with self._wake_lock:
            self._running = False
        for dialled in self._dialled.values():
            dialled.close()
        self._context.destroy(0)
        self._tell(self._ended)


def _bounded(body: zmq.Frame) -> bytes:
    if len(body) > BODY_NBYTES_MAX:
        raise FrameError(f"a body of {len(body)} bytes is over {BODY_NBYTES_MAX}")
    return body.bytes
