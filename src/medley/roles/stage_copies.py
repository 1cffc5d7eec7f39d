"""Copies of a stage's KV: what other machines get of it, and which of their copies are taken here.

Only what known tokens led to is copied or said to be held, never a draft: a copy that lags is sent what it misses, but
one that holds a rejected draft looks like a good one. Posts may be lost: whoever cannot join what comes asks for what
is between (`Missing`). Whoever got copies hears when they are not needed any more (`Ended`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from medley.protocol.ids import NodeId
from medley.protocol.messages import Address
from medley.protocol.stages.events import Export, Halt, Post, StageEffect
from medley.protocol.stages.words import Ended, Held, Hop, Missing, Pass, Replicate, RequestId, Row, Shadow

ASKED_MAX = 4096
ASK_AGAIN_NS = 500_000_000
FORMER_MAX = 64


@dataclass(slots=True)
class Copy:
    """KV of some layers that another machine gets, and up to which position of each request it was sent."""

    wanted: Replicate
    sent: dict[RequestId, int] = field(default_factory=dict)


class Copies:
    def __init__(self, node: NodeId) -> None:
        self._node = node
        self._copies: dict[tuple[NodeId, int, int], Copy] = {}
        self._former: dict[Address, None] = {}  # they still have what they got
        self._drafts: dict[RequestId, dict[tuple[int, int], int]] = {}  # from where on these layers may hold a draft
        self._asked: dict[Missing, int] = {}  # and when

    # -- out ----------------------------------------------------------------------------------------------------------

    def replicate(self, word: Replicate, requests: Iterable[RequestId]) -> list[StageEffect]:
        """Everything held so far at once, whatever comes after each pass. Said again it changes nothing."""
        key = (word.node, word.first, word.end)
        present = self._copies.get(key)
        if not word.address.endpoint:
            return [] if present is None else [self._halt(key)]
        if present is not None and present.wanted == word:
            return []
        copy = self._copies[key] = Copy(word)
        out: list[StageEffect] = []
        for request in sorted(requests):
            known = self._known(request)
            if known >= 0:
                copy.sent[request] = known
            out.append(Export(request, word.first, word.end, 0, known, word.address))
        return out

    def _halt(self, key: tuple[NodeId, int, int]) -> Halt:
        wanted = self._copies.pop(key).wanted
        self._former[wanted.address] = None
        bound(self._former, FORMER_MAX)
        return Halt(wanted.first, wanted.end, wanted.address)

    def opened(self, requests: Iterable[RequestId]) -> None:
        """New ones are copied from position 0 on, which no row tells of where they begin as a copy of another."""
        for request in requests:
            for copy in self._copies.values():
                copy.sent[request] = 0

    def computed(self, word: Pass, hop: Hop) -> None:
        """A row without a draft says that whatever lies before it came true, too."""
        for row in word.rows:
            if row.samples > 1:
                self._drafts.setdefault(row.request, {})[hop.first, hop.end] = _known_end(row)
            elif row.request in self._drafts:
                self._overwritten(row.request, hop.first, hop.end, 0)

    def behind(self, word: Pass, hop: Hop) -> list[StageEffect]:
        """What the copies get after this pass."""
        out: list[StageEffect] = []
        for copy in self._copies.values():
            first, end = max(hop.first, copy.wanted.first), min(hop.end, copy.wanted.end)
            if first < end:
                out += [self._row_behind(copy, row, first, end) for row in word.rows]
        return out

    def _row_behind(self, copy: Copy, row: Row, first: int, end: int) -> Export:
        """From where the copy ends: drafts that came true, and passes that were not told of, lie in between."""
        start, known = min(row.start, copy.sent.get(row.request, row.start)), _known_end(row)
        copy.sent[row.request] = known
        return Export(row.request, first, end, start, known - start, copy.wanted.address)

    def again(self, word: Missing) -> list[StageEffect]:
        """Something was lost on its way: all that is known from there on."""
        known = self._known(word.request)
        count = -1 if known < 0 else known - word.held
        if known >= 0 and count <= 0:
            return []
        return [
            Export(word.request, word.first, word.end, word.held, count, copy.wanted.address)
            for copy in self._copies.values()
            if copy.wanted.node == word.node and copy.wanted.first <= word.first and word.end <= copy.wanted.end
        ]

    def forget(self, requests: tuple[RequestId, ...]) -> list[StageEffect]:
        for request in requests:
            self._drafts.pop(request, None)
            for copy in self._copies.values():
                copy.sent.pop(request, None)
        where = dict.fromkeys([copy.wanted.address for copy in self._copies.values()]) | self._former
        return [Post(address, Ended(requests)) for address in where] if requests else []

    # -- in, and what may be believed ---------------------------------------------------------------------------------

    def taken(self, word: Shadow) -> None:
        self._overwritten(word.request, word.first, word.end, word.start)

    def missed(self, word: Shadow, held: int, now_ns: int) -> list[StageEffect]:
        """Asked for once in a while: what comes until the answer does cannot be joined either."""
        missing = Missing(self._node, word.request, word.first, word.end, held)
        if now_ns - self._asked.get(missing, now_ns - ASK_AGAIN_NS) < ASK_AGAIN_NS:
            return []
        self._asked[missing] = now_ns
        bound(self._asked, ASKED_MAX)
        return [Post(word.source, missing)]

    def believed(self, word: Held) -> Held:
        """Without what may be drafts."""
        if not self._drafts:
            return word
        positions = [
            p if (known := self._known(p.request)) < 0 else replace(p, held=min(p.held, known)) for p in word.positions
        ]
        return replace(word, positions=tuple(positions))

    def _known(self, request: RequestId) -> int:
        """Positions that certainly hold no draft; -1: all."""
        return min(self._drafts.get(request, {}).values(), default=-1)

    def _overwritten(self, request: RequestId, first: int, end: int, start: int) -> None:
        """These layers hold known tokens from `start` on, and nothing beyond."""
        drafts = self._drafts.get(request, {})
        for (begin, stop), known in list(drafts.items()):
            if first <= begin and stop <= end and start <= known:
                del drafts[begin, stop]
        if not drafts:
            self._drafts.pop(request, None)


def bound(known: dict[Any, Any], most: int) -> None:
    """Forget the oldest."""
    while len(known) > most:
        del known[next(iter(known))]


def _known_end(row: Row) -> int:
    """Behind the last token that is no draft."""
    return row.start + row.count - max(0, row.samples - 1)
