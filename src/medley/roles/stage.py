"""A pipeline stage: which hops of which layout are this machine's, the passes that wait, who gets copies of their KV.

Pure, like every role; one pass is computed at a time, in the order of arrival. A pass of an older generation is
dropped, one of a newer is parked until its layout arrives. Leaves all else to the front: layouts, batches, deadlines.
"""

from __future__ import annotations

from collections import deque
from typing import assert_never

from medley.protocol.ids import NodeId
from medley.protocol.stages.events import (
    Arrived,
    Body,
    Compute,
    Computed,
    Do,
    Forget,
    Import,
    Met,
    Post,
    Reject,
    Said,
    StageEffect,
    StageEvent,
    Tick,
    Unjoined,
)
from medley.protocol.stages.words import (
    NOWHERE,
    Alive,
    AskHeld,
    Drawn,
    Ended,
    Free,
    Held,
    Hop,
    Layout,
    Load,
    Measure,
    Missing,
    Pass,
    Probe,
    Refusal,
    Replicate,
    RequestId,
    Shadow,
    Unload,
)
from medley.roles.stage_copies import Copies, bound

QUEUE_MAX = 256  # passes that wait here; a front has far fewer in flight
PARKED_MAX = 64
FREED_MAX = 4096  # request ids whose late copies are not taken any more

NOBODY = Layout(0, (), NOWHERE, "bf16")


class Stage:
    """`handle` is called on one thread; `layout` is replaced whole, so that others may read it at any time."""

    def __init__(self, node: NodeId) -> None:
        self.node = node
        self.layout = NOBODY
        self.computing: Pass | None = None
        self.front = NOWHERE
        self._queue: deque[tuple[Pass, Body]] = deque()
        self._parked: deque[tuple[Pass, Body]] = deque()
        self._copies = Copies(node)
        self._requests: set[RequestId] = set()
        self._mine: set[RequestId] = set()  # opened by a pass of this layout
        self._promised: set[RequestId] = set()  # this layout counts on what is held of them, before a pass opens them
        self._freed: dict[RequestId, None] = {}
        self._working: set[int] = set()  # numbers of what is being done; a front that hears nothing asks again
        self._began_ns = 0
        self._hop: Hop | None = None  # that computes

    @property
    def queue(self) -> int:
        return len(self._queue)

    @property
    def requests(self) -> int:
        return len(self._requests)

    def handle(self, event: StageEvent, now_ns: int) -> list[StageEffect]:
        match event:
            case Arrived(word, body):
                return self._arrived(word, body, now_ns)
            case Computed():
                return [*self._computed(event, now_ns), *self._next(now_ns)]
            case Unjoined(shadow, held):
                return self._copies.missed(shadow, held, now_ns)
            case Said(word):
                self._working.discard(getattr(word, "number", 0))
                said = self._held(word) if isinstance(word, Held) else word
                return [Post(self.front, said)] if self.front.endpoint else []
            case Met(front):
                self.front = front
                return []
            case Tick():
                return []
            case _:
                assert_never(event)

    # -- words ------------------------------------------------------------------------------------------------------

    def _arrived(self, word: object, body: Body, now_ns: int) -> list[StageEffect]:
        match word:
            case Pass():
                return self._pass(word, body, now_ns)
            case Layout():
                return self._laid_out(word, now_ns)
            case AskHeld():
                return [Do(word)] if word.generation <= self.layout.generation else []  # its layout was lost: ask again
            case Load() | Unload() | Measure():
                return self._work(word)
            case Replicate():
                return self._copies.replicate(word, self._requests)
            case Free(requests):
                return [Forget(requests), *self._forget(requests)]
            case Ended(requests):
                return self._ended(requests)
            case Shadow():
                return self._shadow(word, body)
            case Missing():
                return self._copies.again(word) if word.request in self._requests else []
            case Probe():
                return list(probed(self.layout, word, self._busy_ns(now_ns)))
            case _:
                return [Reject("a peer", f"{type(word).__name__} is not for a stage")]

    def _held(self, word: Held) -> Held:
        believed = self._copies.believed(word)
        if word.generation == self.layout.generation and any(hop.node == self.node for hop in self.layout.hops):
            self._promised.update(p.request for p in believed.positions if p.request in self._requests)
        return believed

    def _work(self, word: Load | Unload | Measure) -> list[StageEffect]:
        if word.number in self._working:
            return []
        self._working.add(word.number)
        return [Do(word)]

    def _laid_out(self, word: Layout, now_ns: int) -> list[StageEffect]:
        if word.generation <= self.layout.generation:
            return []
        self.layout, self.front = word, word.front
        self._queue.clear()
        self._mine.clear()
        self._promised.clear()
        parked, self._parked = self._parked, deque()
        return [effect for early, body in parked for effect in self._pass(early, body, now_ns)]

    def _pass(self, word: Pass, body: Body, now_ns: int) -> list[StageEffect]:
        if word.generation < self.layout.generation:
            return []
        if word.generation > self.layout.generation:
            if len(self._parked) < PARKED_MAX:
                self._parked.append((word, body))
            return []
        hops = self.layout.hops
        if word.place >= len(hops) or hops[word.place].node != self.node or len(self._queue) >= QUEUE_MAX:
            return [Reject("a peer", f"a pass for hop {word.place}, with {len(self._queue)} waiting")]
        self._queue.append((word, body))
        return self._next(now_ns)

    def _next(self, now_ns: int) -> list[StageEffect]:
        if self.computing is not None or not self._queue:
            return []
        word, body = self._queue.popleft()
        opened = {opening.request for opening in word.opens}
        told = self._forget(word.frees)
        unopened = next((row.request for row in word.rows if row.request not in self._mine | opened), None)
        if unopened is not None:
            refused = self._unopened(word, unopened)
            return [Forget(word.frees), *told, refused, *self._next(now_ns)]
        self.computing, self._began_ns = word, now_ns
        self._opened(opened)
        hop = self._hop = self.layout.hops[word.place]
        return [*told, Compute(word, hop.first, hop.end, body)]

    def _unopened(self, word: Pass, request: RequestId) -> Post:
        """The pass that opened it in this layout never came, so nobody here knows how its tokens are drawn."""
        reason = f"the pass that opened request {request} never came"
        return Post(self.front, Refusal(word.generation, word.batch, word.place, request, "gap", 0, reason))

    def _opened(self, requests: set[RequestId]) -> None:
        self._copies.opened(requests - self._requests)
        self._requests |= requests
        self._mine |= requests
        for request in requests:
            self._freed.pop(request, None)

    def _busy_ns(self, now_ns: int) -> int:
        return now_ns - self._began_ns if self.computing is not None else 0

    # -- what was computed ------------------------------------------------------------------------------------------

    def _computed(self, event: Computed, now_ns: int) -> list[StageEffect]:
        word, hop, self.computing = event.word, self._hop, None
        assert hop is not None
        refused = event.refused
        if refused is None:
            self._copies.computed(word, hop)
        if word.generation != self.layout.generation:
            return []
        if refused is not None:
            kind, request = refused.kind, refused.request
            said = Refusal(word.generation, word.batch, word.place, request, kind, refused.held, refused.reason)
            return [Post(self.front, said)]
        spent = (*word.spent_ns, now_ns - self._began_ns)
        out = self._on(word, event, spent)
        return [*out, *self._copies.behind(word, hop)]

    def _on(self, word: Pass, event: Computed, spent: tuple[int, ...]) -> list[StageEffect]:
        """To the front from the last hop; else to the next one, which may be on this machine too."""
        place = word.place + 1
        if place == len(self.layout.hops):
            return [Post(self.front, Drawn(word.generation, word.batch, event.draws, spent))]
        onward = Pass(
            word.generation, word.batch, place, word.rows, word.opens, word.frees, self.layout.wire, word.width, spent
        )
        following = self.layout.hops[place]
        if following.node == self.node:
            self._queue.append((onward, event.hidden))
            return []
        return [Post(following.address, onward, event.hidden)]

    # -- what comes and goes beside the passes ------------------------------------------------------------------------

    def _shadow(self, word: Shadow, body: Body) -> list[StageEffect]:
        """Not of layers that are computed here, and not late ones of what was freed."""
        computed = word.request in self._mine | self._promised and any(
            hop.node == self.node and hop.first < word.end and word.first < hop.end for hop in self.layout.hops
        )
        if computed or (word.request in self._freed and word.start > 0):
            return []
        self._requests.add(word.request)
        self._freed.pop(word.request, None)
        self._copies.taken(word)
        return [Import(word, body)]

    def _ended(self, requests: tuple[RequestId, ...]) -> list[StageEffect]:
        """Of those that are computed here the front decides."""
        copied = tuple(request for request in requests if request in self._requests - self._mine - self._promised)
        return [Forget(copied), *self._forget(copied)] if copied else []

    def _forget(self, requests: tuple[RequestId, ...]) -> list[StageEffect]:
        """Whoever has copies is told, once: two machines may have copies of each other."""
        known = tuple(request for request in requests if request in self._requests)
        self._requests.difference_update(requests)
        self._mine.difference_update(requests)
        self._promised.difference_update(requests)
        self._freed.update(dict.fromkeys(requests))
        bound(self._freed, FREED_MAX)
        return self._copies.forget(known)


def probed(layout: Layout, probe: Probe, busy_ns: int) -> tuple[Post, ...]:
    """What a probe's arrival leads to; for any thread, since a computation may take longer than a probe may wait."""
    if probe.generation != layout.generation or not probe.place < len(layout.hops):
        return ()
    answers = [Post(layout.front, Alive(probe.generation, probe.number, probe.place, busy_ns))]
    place = probe.place + 1
    here = layout.hops[probe.place].node
    while place < len(layout.hops) and layout.hops[place].node == here:
        answers.append(Post(layout.front, Alive(probe.generation, probe.number, place, busy_ns)))
        place += 1
    if place < len(layout.hops):
        answers.append(Post(layout.hops[place].address, Probe(probe.generation, probe.number, place)))
    return tuple(answers)
