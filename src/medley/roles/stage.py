"""A pipeline stage: which hops of which layout are this machine's, the passes that wait, who gets copies of their KV.

Pure, like every role; one pass is computed at a time, in the order of arrival. A pass of an older generation is
dropped, one of a newer is parked until its layout arrives. Leaves all else to the front: layouts, batches, deadlines.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any, assert_never

from medley.protocol.ids import NodeId
from medley.protocol.messages import Address
from medley.protocol.pipeline import (
    Alive,
    AskHeld,
    Drawn,
    Free,
    Layout,
    Load,
    Measure,
    Missing,
    Pass,
    Probe,
    Refusal,
    Replicate,
    RequestId,
    Row,
    Shadow,
    Unload,
)
from medley.protocol.serving import (
    Arrived,
    Body,
    Compute,
    Computed,
    Do,
    Export,
    Forget,
    Halt,
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

QUEUE_MAX = 256  # passes that wait here; a front has far fewer in flight
PARKED_MAX = 64
FREED_MAX = 4096  # request ids whose late copies are not taken any more
ASK_AGAIN_NS = 500_000_000

NOWHERE = Address("", "")
NOBODY = Layout(0, (), NOWHERE, "bf16")


@dataclass(slots=True)
class Copy:
    """KV of some layers that another machine gets, and up to which position of each request it was sent."""

    wanted: Replicate
    sent: dict[RequestId, int] = field(default_factory=dict)


class Stage:
    """`handle` is called on one thread; `layout` is replaced whole, so that others may read it at any time."""

    def __init__(self, node: NodeId) -> None:
        self.node = node
        self.layout = NOBODY
        self.computing: Pass | None = None
        self.front = NOWHERE
        self._queue: deque[tuple[Pass, Body]] = deque()
        self._parked: deque[tuple[Pass, Body]] = deque()
        self._copies: dict[tuple[NodeId, int, int], Copy] = {}
        self._requests: set[RequestId] = set()
        self._freed: dict[RequestId, None] = {}
        self._asked: dict[Missing, int] = {}  # and when
        self._began_ns = 0

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
                return self._missed(shadow, held, now_ns)
            case Said(word):
                return [Post(self.front, word)] if self.front.endpoint else []
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
            case Load() | Unload() | Measure() | AskHeld():
                return [Do(word)]
            case Replicate():
                return self._replicate(word)
            case Free(requests):
                return self._free(requests)
            case Shadow():
                return self._shadow(word, body)
            case Missing():
                return self._again(word)
            case Probe():
                return list(probed(self.layout, word, self._busy_ns(now_ns)))
            case _:
                return [Reject("a peer", f"{type(word).__name__} is not for a stage")]

    def _laid_out(self, word: Layout, now_ns: int) -> list[StageEffect]:
        if word.generation <= self.layout.generation:
            return []
        self.layout, self.front = word, word.front
        self._queue.clear()
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
        self.computing, self._began_ns = word, now_ns
        self._forget(word.frees)
        self._opened({opening.request for opening in word.opens})
        hop = self.layout.hops[word.place]
        return [Compute(word, hop.first, hop.end, body)]

    def _opened(self, requests: set[RequestId]) -> None:
        """Whoever gets copies gets a new request's from position 0, which no row tells of where it has a donor."""
        for request in requests - self._requests:
            self._freed.pop(request, None)
            for copy in self._copies.values():
                copy.sent[request] = 0
        self._requests |= requests

    def _busy_ns(self, now_ns: int) -> int:
        return now_ns - self._began_ns if self.computing is not None else 0

    # -- what was computed ------------------------------------------------------------------------------------------

    def _computed(self, event: Computed, now_ns: int) -> list[StageEffect]:
        word, self.computing = event.word, None
        if word.generation != self.layout.generation:
            return []
        refused = event.refused
        if refused is not None:
            said = Refusal(
                word.generation, word.batch, word.place, refused.request, refused.kind, refused.held, refused.reason
            )
            return [Post(self.front, said)]
        spent = (*word.spent_ns, now_ns - self._began_ns)
        out = self._on(word, event, spent)
        return [*out, *self._copied(word)]

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

    # -- copies -----------------------------------------------------------------------------------------------------

    def _replicate(self, word: Replicate) -> list[StageEffect]:
        """Everything held so far at once, whatever comes after each pass."""
        if not word.node:
            stopped = [key for key in self._copies if key[1:] == (word.first, word.end)]
            return [Halt(word.first, word.end, self._copies.pop(key).wanted.address) for key in stopped]
        self._copies[word.node, word.first, word.end] = Copy(word)
        return [Export(r, word.first, word.end, 0, -1, word.address) for r in sorted(self._requests)]

    def _again(self, word: Missing) -> list[StageEffect]:
        """A post was lost on its way to a copy, or fenced off: all that is held from there on."""
        if word.request not in self._requests:
            return []
        copies = [copy.wanted for copy in self._copies.values() if copy.wanted.node == word.node]
        return [
            Export(word.request, word.first, word.end, word.held, -1, wanted.address)
            for wanted in copies
            if wanted.first <= word.first and word.end <= wanted.end
        ]

    def _copied(self, word: Pass) -> list[StageEffect]:
        hop = self.layout.hops[word.place]
        out: list[StageEffect] = []
        for copy in self._copies.values():
            first, end = max(hop.first, copy.wanted.first), min(hop.end, copy.wanted.end)
            if first < end:
                out += [self._behind(copy, row, first, end) for row in word.rows]
        return out

    def _behind(self, copy: Copy, row: Row, first: int, end: int) -> Export:
        """From where the copy ends, if a pass in between was not told of."""
        start = min(row.start, copy.sent.get(row.request, row.start))
        copy.sent[row.request] = row.start + row.count
        return Export(row.request, first, end, start, row.start + row.count - start, copy.wanted.address)

    def _shadow(self, word: Shadow, body: Body) -> list[StageEffect]:
        if word.request in self._freed or not self._welcome(word):
            return []
        self._requests.add(word.request)
        return [Import(word, body)]

    def _welcome(self, word: Shadow) -> bool:
        """From who computes these layers: what a machine says late, of layers that others have taken over, would put
        drafts that came to nothing in place of what was computed since.
        """
        hops = self.layout.hops
        if any(hop.node == self.node and hop.first < word.end and word.first < hop.end for hop in hops):
            return False
        theirs = {layer for hop in hops if hop.node == word.node for layer in range(hop.first, hop.end)}
        return word.generation > self.layout.generation or all(n in theirs for n in range(word.first, word.end))

    def _missed(self, word: Shadow, held: int, now_ns: int) -> list[StageEffect]:
        """Asked for once in a while: what comes until the answer does cannot be joined either."""
        missing = Missing(self.node, word.request, word.first, word.end, held)
        if now_ns - self._asked.get(missing, now_ns - ASK_AGAIN_NS) < ASK_AGAIN_NS:
            return []
        self._asked[missing] = now_ns
        _bounded(self._asked, FREED_MAX)
        return [Post(hop.address, missing) for hop in self.layout.hops if hop.node == word.node][:1]

    def _free(self, requests: tuple[RequestId, ...]) -> list[StageEffect]:
        self._forget(requests)
        return [Forget(requests)]

    def _forget(self, requests: tuple[RequestId, ...]) -> None:
        self._requests.difference_update(requests)
        for copy in self._copies.values():
            for request in requests:
                copy.sent.pop(request, None)
        self._freed.update(dict.fromkeys(requests))
        _bounded(self._freed, FREED_MAX)


def _bounded(known: dict[Any, Any], most: int) -> None:
    """Forget the oldest."""
    while len(known) > most:
        del known[next(iter(known))]


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
