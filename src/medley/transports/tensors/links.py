"""A link: one route to a peer's plane over a socket the engine owns, its pace, and the transfers that use it.

An inbound link is a routing id on the ROUTER socket; an outbound link is a DEALER socket of its own with a
monitor that tells when the handshake succeeded, failed, or the connection was lost.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import zmq

from medley.transports.tensors.contract import Buffer, Limits, Peer
from medley.transports.tensors.curve import Curve
from medley.transports.tensors.pace import Pace
from medley.transports.tensors.ways import Way, Ways
from medley.transports.tensors.wire import BODY_NBYTES_MAX, HEADER_NBYTES, Flag, Frame, Type

if TYPE_CHECKING:
    from medley.transports.tensors.transfers import Transfer

OUTBOX_FRAMES = 4096
IDLE_LINK_S = 60.0
ZERO_COPY_NBYTES = 64 * 1024
DEAF_NBYTES = 4096  # what handshakes need
CURVE_NBYTES = 64  # around a message: a command's name, a nonce, a tag
EVENTS = (
    zmq.EVENT_CONNECTED
    | zmq.EVENT_CONNECT_RETRIED
    | zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_DISCONNECTED
)


@dataclass(eq=False, slots=True)
class Link:
    """Sends frames over `socket`, each behind `prefix`. Owned by the I/O thread."""

    socket: zmq.Socket[bytes]
    prefix: tuple[bytes, ...]
    key: bytes
    counters: Counter[str]
    pace: Pace = field(default_factory=Pace)
    transfers: dict[int, Transfer] = field(default_factory=dict)
    outbox: deque[list[Buffer]] = field(default_factory=deque)
    heard_at: float = 0.0
    lost: bool = False

    def send(self, frame: Frame, payload: Buffer | None = None) -> bool:
        """Send or, for control frames, queue. False: a chunk that must be offered again, or a lost link."""
        parts: list[Buffer] = [*self.prefix, frame.encode()]
        if payload is not None:
            parts.append(payload)
        if self.lost or (self.outbox and frame.type is Type.CHUNK):
            return False
        if not self.outbox and self._write(parts):
            return True
        if frame.type is Type.CHUNK or self.lost:
            return False
        return self._queue(parts)

    def refuse(self, transfer: int, reason: str, *, busy: bool = False) -> None:
        flags = Flag.BUSY if busy else Flag.NONE
        self.counters["refused_by_us"] += 1
        self.send(Frame(Type.REFUSE, transfer, flags), reason.encode()[:1024])

    def flush(self) -> None:
        """Try the queued control frames again, in order."""
        while self.outbox and not self.lost and self._write(self.outbox[0]):
            self.outbox.popleft()

    def _queue(self, parts: list[Buffer]) -> bool:
        if len(self.outbox) >= OUTBOX_FRAMES:
            self.lost = True
            return False
        self.outbox.append(parts)
        return True

    def _write(self, parts: list[Buffer]) -> bool:
        try:
            for part in parts[:-1]:
                self.socket.send(part, zmq.SNDMORE | zmq.DONTWAIT)
            self.socket.send(parts[-1], zmq.DONTWAIT, copy=len(parts[-1]) < ZERO_COPY_NBYTES)
        except zmq.Again:
            return False
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            self.lost = True
            return False
        return True


def bound(socket: zmq.Socket[bytes], limits: Limits) -> None:
    """The options both kinds of socket share: nothing lingers, nothing grows, the dead are noticed."""
    socket.linger = 0
    socket.maxmsgsize = max(limits.chunk_nbytes_max, HEADER_NBYTES + limits.post_nbytes, BODY_NBYTES_MAX) + CURVE_NBYTES
    socket.handshake_ivl = int(limits.handshake_s * 1000)
    socket.heartbeat_ivl = int(limits.heartbeat_s * 1000)
    socket.heartbeat_timeout = int(limits.silence_s * 1000)
    socket.heartbeat_ttl = int(limits.silence_s * 1000)
    socket.sndhwm = 256
    socket.rcvhwm = 64
    socket.tcp_keepalive = 1
    socket.tcp_keepalive_idle = max(1, int(limits.silence_s))
    socket.backlog = 128


@dataclass(eq=False, slots=True)
class Dialled:
    """An outbound connection to one peer: its link, its monitor, and whether the handshake is done."""

    peer: Peer
    link: Link
    monitor: zmq.Socket[bytes]
    way: Way
    up: bool = False
    remake_at: float | None = None
    failures: int = 0
    suspect: bool = False
    used_at: float = 0.0
    why: str = "it does not answer"

    def close(self) -> None:
        self.link.socket.disable_monitor()
        self.monitor.close(0)
        self.link.socket.close(0)


def dial(
    context: zmq.Context[zmq.Socket[bytes]],
    peer: Peer,
    identity: Curve | None,
    limits: Limits,
    counters: Counter[str],
    way: Way,
    ways: Ways,
    deaf: bool,
) -> Dialled:
    """Connect a DEALER to `peer`. Nothing is queued before the handshake is done (IMMEDIATE).

    `deaf`: nobody will read what the peer sends, so almost nothing of it is kept.
    """
    socket = context.socket(zmq.DEALER)
    bound(socket, limits)
    if deaf:
        socket.maxmsgsize, socket.rcvhwm = DEAF_NBYTES, 1
    socket.immediate = 1
    socket.reconnect_ivl = 50
    socket.reconnect_ivl_max = 1000
    socket.connect_timeout = int(limits.floor_s * 1000)
    if identity is not None and peer.public_key is not None:
        identity.apply_as_client(socket, peer.public_key)
    monitor = socket.get_monitor_socket(EVENTS)
    if way.relayed:
        assert ways.detour is not None
        socket.setsockopt_string(zmq.SOCKS_PROXY, ways.detour.proxy)
        socket.connect(ways.detour.named(peer, way.why))
    else:
        if ways.emulated is not None:
            socket.setsockopt_string(zmq.SOCKS_PROXY, ways.emulated.proxy)
            socket.setsockopt_string(zmq.SOCKS_USERNAME, ways.emulated.secret)
            socket.setsockopt_string(zmq.SOCKS_PASSWORD, ways.emulated.secret)
        socket.ipv6 = "[" in peer.endpoint
        socket.connect(peer.endpoint)
    return Dialled(peer, Link(socket, (), peer.public_key or b"", counters), monitor, way)
