"""Posts: one-way messages, which any thread may queue and the I/O thread sends and receives.

Promises: a post arrives whole and undamaged or not at all; posts to one peer keep their order while a connection lives;
a queue is bounded in frames and bytes, large posts counting until ZeroMQ has let go of them; what waits too long for
a peer that cannot be reached is dropped. Whoever needs to know that a post arrived must be answered by its receiver.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import xxhash
import zmq

from medley.protocol.errors import FrameError
from medley.transports.tensors.contract import Limits, Peer
from medley.transports.tensors.links import ZERO_COPY_NBYTES
from medley.transports.tensors.wire import Frame, Type

log = logging.getLogger(__name__)

Posted = Callable[[bytes, memoryview], None]  # the poster's key, the payload
Lost = Callable[[Peer], None]


@dataclass(eq=False, slots=True)
class _Queue:
    """What waits for one peer. `held`: large posts under way, and how to see that ZeroMQ has let go of them."""

    posts: deque[tuple[bytes, bytes]] = field(default_factory=deque)  # frame, payload
    held: deque[tuple[zmq.MessageTracker, int]] = field(default_factory=deque)
    nbytes: int = 0  # of both
    unreachable_since: float | None = None

    def reap(self) -> None:
        while self.held and self.held[0][0].done:
            self.nbytes -= self.held.popleft()[1]


class Posts:
    """The queues of all peers. `queue` and `backlog` are for any thread, the others for the I/O thread."""

    def __init__(self, limits: Limits, counters: Counter[str]) -> None:
        self._limits, self._counters = limits, counters
        self._queues: dict[Peer, _Queue] = {}
        self._lock = threading.Lock()

    def queue(self, peer: Peer, payload: bytes) -> bool:
        """False, and counted, when there is no room for it."""
        frame = Frame(Type.POST, 0, length=len(payload), check=xxhash.xxh3_64_intdigest(payload)).encode()
        with self._lock:
            queue = self._queues.setdefault(peer, _Queue())
            queue.reap()
            if len(queue.posts) >= self._limits.posts or queue.nbytes + len(payload) > self._limits.posts_nbytes:
                self._counters["posts_overflowed"] += 1
                return False
            queue.posts.append((frame, payload))
            queue.nbytes += len(payload)
        return True

    def backlog(self, peer: Peer) -> int:
        """Bytes posted to the peer that are still here."""
        with self._lock:
            queue = self._queues.get(peer)
            if queue is None:
                return 0
            queue.reap()
            return queue.nbytes

    def waiting(self) -> list[Peer]:
        """Peers for whom something is queued."""
        if not self._queues:
            return []
        with self._lock:
            return [peer for peer, queue in self._queues.items() if queue.posts]

    def send(self, peer: Peer, socket: zmq.Socket[bytes]) -> bool:
        """Hand what is queued to a socket that stands; False when it takes no more for now."""
        queue = self._queues[peer]
        queue.unreachable_since = None
        while queue.posts:
            tracker = _written(socket, *queue.posts[0])
            if tracker is None:
                return False
            with self._lock:
                nbytes = len(queue.posts.popleft()[1])
                queue.held.append((tracker, nbytes))
                queue.reap()
            self._counters["posts_sent"] += 1
        return True

    def unreachable(self, peer: Peer, now: float) -> None:
        """There is no connection to the peer: drop what is queued when that has lasted too long."""
        queue = self._queues[peer]
        if queue.unreachable_since is None:
            queue.unreachable_since = now
        elif now - queue.unreachable_since > self._limits.post_wait_s:
            self.drop(peer)

    def drop(self, peer: Peer) -> None:
        queue = self._queues[peer]
        with self._lock:
            self._counters["posts_dropped"] += len(queue.posts)
            queue.nbytes -= sum(len(payload) for _, payload in queue.posts)
            queue.posts.clear()
            queue.unreachable_since = None

    def forget(self, gone: Callable[[Peer], bool]) -> None:
        """Let go of the empty queues of peers that are gone."""
        with self._lock:
            for peer, queue in list(self._queues.items()):
                queue.reap()
                if not queue.nbytes and not queue.posts and gone(peer):
                    del self._queues[peer]


def _written(socket: zmq.Socket[bytes], frame: bytes, payload: bytes) -> zmq.MessageTracker | None:
    """Send both parts, or neither and None. A small payload is copied, and done with at once."""
    try:
        socket.send(frame, zmq.SNDMORE | zmq.DONTWAIT)
        if len(payload) >= ZERO_COPY_NBYTES:
            return socket.send(payload, zmq.DONTWAIT, copy=False, track=True)
        socket.send(payload, zmq.DONTWAIT)
    except zmq.Again:
        return None
    return zmq.MessageTracker()


class Postbox:
    """What arrives, and the program's callbacks: a fault of theirs is counted and logged, and nothing else suffers."""

    def __init__(self, limits: Limits, counters: Counter[str], posted: Posted | None, lost: Lost | None) -> None:
        self._limits, self._counters, self._posted, self._lost = limits, counters, posted, lost

    def welcome(self, frame: Frame) -> None:
        """`FrameError` for a post that is not even received."""
        if self._posted is None:
            raise FrameError("a post, and nobody here to take it")
        if frame.length > self._limits.post_nbytes:
            raise FrameError(f"a post of {frame.length} bytes is over {self._limits.post_nbytes}")

    def take(self, key: bytes, frame: Frame, body: zmq.Frame | None) -> None:
        """Hand it over. `FrameError` when it is not what its frame says. The view keeps the message's memory alive."""
        payload = memoryview(b"") if body is None else body.buffer
        if payload.nbytes != frame.length or xxhash.xxh3_64_intdigest(payload) != frame.check:
            raise FrameError("a damaged post")
        self._counters["posts_taken"] += 1
        self._call(self._posted, key, payload)

    def lost(self, peer: Peer) -> None:
        self._call(self._lost, peer)

    def _call(self, callback: Callable[..., None] | None, *words: Any) -> None:
        if callback is None:
            return
        try:
            callback(*words)
        except Exception:
            self._counters["post_faults"] += 1
            log.exception("the program failed at what the tensor plane told it")
