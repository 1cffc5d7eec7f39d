"""Posts: one-way messages. Whichever thread posts also sends, where a connection stands; the I/O thread opens
connections, sends what had to wait, and receives.

Promises: a post arrives whole and undamaged or not at all; posts to one peer keep their order while a connection lives;
a queue is bounded in posts and bytes, large posts counting until ZeroMQ has let go of them; what waits too long for a
peer that cannot be reached is dropped. Whoever needs to know that a post arrived must be answered by its receiver.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import xxhash
import zmq

from medley.protocol.errors import FrameError
from medley.transports.tensors.contract import Buffer, Limits, Peer
from medley.transports.tensors.curve import Curve
from medley.transports.tensors.dialling import Dialling
from medley.transports.tensors.links import ZERO_COPY_NBYTES, Dialled
from medley.transports.tensors.transfers import Host
from medley.transports.tensors.ways import Choice
from medley.transports.tensors.wire import HEADER_NBYTES, Frame, Type

log = logging.getLogger(__name__)

Posted = Callable[[bytes, memoryview], None]  # the poster's key, the payload
Lost = Callable[[Peer], None]


def message_of(buffers: Sequence[Buffer], limit_nbytes: int) -> bytes:
    """A post, frame and payload in one piece of its own. `ValueError` when it is too large."""
    check = xxhash.xxh3_64()
    nbytes = 0
    for buffer in buffers:
        check.update(buffer)
        nbytes += memoryview(buffer).nbytes
    if nbytes > limit_nbytes:
        raise ValueError(f"a post of {nbytes} bytes is over the limit of {limit_nbytes}")
    return b"".join((Frame(Type.POST, 0, length=nbytes, check=check.intdigest()).encode(), *buffers))


@dataclass(eq=False, slots=True)
class _Queue:
    """What waits for one peer. `held`: large posts under way, and how to see that ZeroMQ has let go of them.

    `socket` is there while the connection stands. ZeroMQ allows any thread to use it, one at a time.
    """

    posts: deque[bytes] = field(default_factory=deque)
    held: deque[tuple[zmq.MessageTracker, int]] = field(default_factory=deque)
    nbytes: int = 0  # of both
    socket: zmq.Socket[bytes] | None = None
    used: bool = True  # since the last tick
    unreachable_since: float | None = None
    turned: bool = False  # since then the other way was tried, which has its own time, once

    def send(self, message: bytes) -> bool:
        """False: not now."""
        if self.socket is None:
            return False
        try:
            if len(message) < ZERO_COPY_NBYTES:
                self.socket.send(message, zmq.DONTWAIT)
                return True
            tracker = self.socket.send(message, zmq.DONTWAIT, copy=False, track=True)
        except zmq.Again:
            return False
        assert tracker is not None
        self.held.append((tracker, len(message)))
        self.nbytes += len(message)
        return True

    def reap(self) -> None:
        while self.held and self.held[0][0].done:
            self.nbytes -= self.held.popleft()[1]


class Posts:
    """The queues of all peers. `post`, `backlog` and `connected` are for any thread, the rest for the I/O thread."""

    def __init__(
        self,
        host: Host,
        context: zmq.Context[zmq.Socket[bytes]],
        identity: Curve | None,
        choice: Choice,
        wake: Callable[[], None],
        lost: Lost,
    ) -> None:
        self._limits, self._counters, self._wake, self.breaks = host.limits, host.counters, wake, lost
        self.dialling = Dialling(host, context, identity, choice, self, deaf=True)
        self._queues: dict[Peer, _Queue] = {}
        self._revoked: set[bytes] = set()
        self._lock = threading.Lock()  # over the queues, and over the sockets in them

    def post(self, peer: Peer, message: bytes) -> bool:
        """False, and counted, when there is no room for it."""
        with self._lock:
            queue = self._queues.setdefault(peer, _Queue())
            queue.used = True
            queue.reap()
            if len(queue.posts) >= self._limits.posts or queue.nbytes + len(message) > self._limits.posts_nbytes:
                self._counters["posts_overflowed"] += 1
                return False
            if not queue.posts and queue.send(message):
                self._counters["posts_sent"] += 1
                return True
            queue.posts.append(message)
            queue.nbytes += len(message)
        self._wake()
        return True

    def backlog(self, peer: Peer) -> int:
        """Bytes posted to the peer that are still here."""
        with self._lock:
            queue = self._queues.get(peer)
            if queue is None:
                return 0
            queue.reap()
            return queue.nbytes

    def connected(self, peer: Peer) -> bool:
        return self.dialling.connected(peer)

    def pump(self, now: float) -> bool:
        """Send what waits, opening connections where none are; whether some that stand take no more for now."""
        blocked = False
        for peer, queue in self._waiting():
            if peer.public_key in self._revoked:
                self._drop(queue)
            elif queue.socket is not None:
                blocked |= not self._drain(queue)
            else:
                self._reach(peer, queue, now)
        return blocked

    def tick(self, now: float) -> None:
        with self._lock:
            used = {peer for peer, queue in self._queues.items() if queue.used or queue.posts}
            for peer, queue in list(self._queues.items()):
                queue.used = False
                queue.reap()
                if peer not in used and not queue.nbytes and peer not in self.dialling:
                    del self._queues[peer]
        self.dialling.tick(used, now)

    def revoke(self, key: bytes) -> None:
        self._revoked.add(key)
        self.dialling.revoke(key)

    def admit(self, key: bytes) -> None:
        self._revoked.discard(key)

    # -- the tenant of the connections ---------------------------------------------------------------

    def stands(self, dialled: Dialled) -> None:
        with self._lock:
            queue = self._queues.setdefault(dialled.peer, _Queue())
            queue.socket, queue.unreachable_since, queue.turned = dialled.link.socket, None, False

    def falls(self, dialled: Dialled) -> None:
        with self._lock:
            if dialled.peer in self._queues:
                self._queues[dialled.peer].socket = None

    def turns(self, dialled: Dialled, now: float) -> None:
        with self._lock:
            queue = self._queues.get(dialled.peer)
            if queue is not None and not queue.turned:
                queue.unreachable_since, queue.turned = now, True

    # ------------------------------------------------------------------------------------------------

    def _waiting(self) -> list[tuple[Peer, _Queue]]:
        if not self._queues:
            return []
        with self._lock:
            return [(peer, queue) for peer, queue in self._queues.items() if queue.posts]

    def _drain(self, queue: _Queue) -> bool:
        """One at a time, so that nobody who posts waits for all; False when the socket takes no more."""
        while queue.posts:
            with self._lock:
                if not queue.send(queue.posts[0]):
                    return False
                queue.nbytes -= len(queue.posts.popleft())
                self._counters["posts_sent"] += 1
        return True

    def _reach(self, peer: Peer, queue: _Queue, now: float) -> None:
        try:
            self.dialling.dial(peer, now)
        except zmq.ZMQError:  # no socket can be had
            self._drop(queue)
        if queue.unreachable_since is None:
            queue.unreachable_since = now
        elif now - queue.unreachable_since > self._limits.post_wait_s:
            self._drop(queue)

    def _drop(self, queue: _Queue) -> None:
        with self._lock:
            self._counters["posts_dropped"] += len(queue.posts)
            queue.nbytes -= sum(map(len, queue.posts))
            queue.posts.clear()
            queue.unreachable_since, queue.turned = None, False


class Postbox:
    """What arrives, and the program's callbacks: a fault of theirs is counted and logged, and nothing else suffers."""

    def __init__(self, limits: Limits, counters: Counter[str], posted: Posted | None, lost: Lost | None) -> None:
        self._limits, self._counters, self._posted, self._lost = limits, counters, posted, lost

    def take(self, key: bytes, frame: Frame, message: zmq.Frame) -> None:
        """Hand it over; the view keeps the message's memory alive. `FrameError` when it is not what its frame says."""
        if self._posted is None:
            raise FrameError("a post, and nobody here to take it")
        if frame.length > self._limits.post_nbytes or len(message) != HEADER_NBYTES + frame.length:
            raise FrameError(f"a post of {frame.length} bytes, in a message of {len(message)}")
        payload = message.buffer[HEADER_NBYTES:]
        if xxhash.xxh3_64_intdigest(payload) != frame.check:
            raise FrameError("a damaged post")
        self._counters["posts_taken"] += 1
        self._call(self._posted, key, payload)

    def lost(self, peer: Peer) -> None:
        if self._lost is not None:
            self._call(self._lost, peer)

    def _call(self, callback: Callable[..., None], *words: Any) -> None:
        try:
            callback(*words)
        except Exception:
            self._counters["post_faults"] += 1
            log.exception("the program failed at what the tensor plane told it")
