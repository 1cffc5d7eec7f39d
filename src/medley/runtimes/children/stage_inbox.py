"""What a stage's compute thread has to do, and the plane's side of it: posts become words on the I/O thread.

Promises: what is no word, or not for a stage, is counted and dropped; words wait in order of arrival, bounded in number
and bytes; a probe is answered at once, however long the present computation takes.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any, get_args

from medley.protocol.errors import FrameError, UserError
from medley.protocol.messages import Address
from medley.protocol.stages.events import Arrived, Post, Said, StageEvent
from medley.protocol.stages.words import (
    Echo,
    Knock,
    Layout,
    Pass,
    Probe,
    Reach,
    ToStage,
    Word,
    body_nbytes,
    pack,
    unpack,
)
from medley.roles.stage import NOBODY, probed
from medley.roles.stage_reach import Reaching
from medley.runtimes.children.plane import peer_of
from medley.runtimes.clock import SystemClock
from medley.transports.tensors.contract import Buffer, Peer
from medley.transports.tensors.plane import TensorPlane

WORDS_MAX = 8192
NBYTES_MAX = 512 << 20
PEERS_MAX = 1024
_TO_STAGE = get_args(ToStage)

Call = Callable[[], None]
Item = StageEvent | Call


class Inbox:
    """Read by one thread. What comes from outside is bounded, what this process says to itself is not."""

    def __init__(self) -> None:
        self._items: SimpleQueue[tuple[Item, int]] = SimpleQueue()
        self._lock = threading.Lock()
        self._words = self._nbytes = 0

    def put(self, item: Item) -> None:
        self._items.put((item, -1))

    def offer(self, event: Arrived, nbytes: int) -> bool:
        """False: there is no room."""
        with self._lock:
            if self._words >= WORDS_MAX or self._nbytes + nbytes > NBYTES_MAX:
                return False
            self._words, self._nbytes = self._words + 1, self._nbytes + nbytes
        self._items.put((event, nbytes))
        return True

    def take(self, timeout_s: float | None) -> Item | None:
        """The next one; None: there was none within the time (None: for ever)."""
        try:
            item, nbytes = self._items.get(timeout_s != 0, timeout_s)
        except Empty:
            return None
        if nbytes >= 0:
            with self._lock:
                self._words, self._nbytes = self._words - 1, self._nbytes - nbytes
        return item


class Sender:
    """Words out, from any thread. What cannot be sent is counted: its reader will see a deadline pass."""

    def __init__(self, counters: Counter[str]) -> None:
        self._counters = counters
        self._peers: dict[Address, Peer] = {}
        self.plane: TensorPlane | None = None  # until then nothing is sent

    def post(self, to: Address, word: Word, buffers: tuple[Buffer, ...] = ()) -> bool:
        try:
            sent = self.plane is not None and self.plane.post(self._peer(to), [pack(word), *buffers])
        except (UserError, ValueError, FrameError):  # an address, a size or a word that nobody can send
            sent = False
        if not sent:
            self._counters["unsent"] += 1
        return sent

    def backlog(self, to: Address) -> int:
        return 0 if self.plane is None else self.plane.backlog(self._peer(to))

    def _peer(self, to: Address) -> Peer:
        peer = self._peers.get(to)
        if peer is None:
            if len(self._peers) >= PEERS_MAX:
                self._peers.clear()
            peer = self._peers[to] = peer_of(to)
        return peer


class Posted:
    """The plane's callback. It knows the newest layout it has seen: the compute thread may not have come to it yet."""

    def __init__(self, inbox: Inbox, send: Sender, busy_ns: Callable[[], int], counters: Counter[str]) -> None:
        self._inbox, self._send, self._busy_ns, self._counters = inbox, send, busy_ns, counters
        self._layout = NOBODY
        self._reaching, self._clock = Reaching(), SystemClock()

    def __call__(self, key: bytes, payload: memoryview) -> None:
        try:
            word, body = unpack(payload)
        except FrameError:
            self._counters["damaged"] += 1
            return
        self._take(word, body)

    def _take(self, word: Any, body: memoryview) -> None:
        if not isinstance(word, _TO_STAGE) or (isinstance(word, Pass) and body.nbytes != body_nbytes(word)):
            self._counters["misdirected"] += 1
        elif isinstance(word, Reach | Knock | Echo):
            self._timed(self._reaching.heard(word, self._clock.now_ns()))
        elif isinstance(word, Probe):
            for post in probed(self._layout, word, self._busy_ns()):
                self._send.post(post.to, post.word)
        else:
            if isinstance(word, Layout) and word.generation > self._layout.generation:
                self._layout = word
            if not self._inbox.offer(Arrived(word, body), body.nbytes):
                self._counters["overflowed"] += 1

    def _timed(self, what: Post | Said | None) -> None:
        """At once: what waits here is taken for the link's."""
        match what:
            case Post(to, Knock() as word):
                self._send.post(to, word, (bytes(word.nbytes),))
            case Post(to, word):
                self._send.post(to, word)
            case Said():
                self._inbox.put(what)
