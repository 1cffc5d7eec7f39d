"""KV on its way to other machines, bit by bit: between passes and when there is nothing else to do.

What is to be sent of a request is one range of positions, which grows with each pass; it leaves in pieces, as fast as
the connection takes them. Runs on the compute thread, which alone may read the cache.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from medley.engines.stage import StageEngine
from medley.engines.stage_refusals import StageRefusal
from medley.engines.stage_wire import encode_kv
from medley.protocol.messages import Address
from medley.protocol.stages.events import Export, Halt
from medley.protocol.stages.words import RequestId, Shadow
from medley.runtimes.children.stage_inbox import Sender

PIECE_NBYTES = 1 << 18
BACKLOG_NBYTES = 1 << 20  # posts that wait for one peer before it gets no more of these: a token may come behind them

Key = tuple[Address, RequestId, int, int]


@dataclass(slots=True)
class Range:
    start: int
    end: int


class Copying:
    """`nbytes`: sent so far."""

    def __init__(self, send: Sender) -> None:
        self._send = send
        self._ranges: dict[Key, Range] = {}
        self.source = Address("", "")
        self.nbytes = 0

    def wanted(self, effect: Export, engine: StageEngine) -> None:
        end = effect.start + effect.count
        if effect.count < 0:
            end = engine.held(effect.first, effect.end).get(effect.request, 0)
        key = (effect.to, effect.request, effect.first, effect.end)
        known = self._ranges.setdefault(key, Range(effect.start, end))
        known.start, known.end = min(known.start, effect.start), end
        if known.start >= known.end:
            del self._ranges[key]

    def halted(self, effect: Halt) -> None:
        self._drop(lambda key: key[0] == effect.to and effect.first <= key[2] and key[3] <= effect.end)

    def forgotten(self, requests: frozenset[RequestId]) -> None:
        if self._ranges and requests:
            self._drop(lambda key: key[1] in requests)

    def _drop(self, gone: Callable[[Key], bool]) -> None:
        for key in [key for key in self._ranges if gone(key)]:
            del self._ranges[key]

    @property
    def waiting(self) -> bool:
        return bool(self._ranges)

    def step(self, engine: StageEngine) -> bool:
        """Send one piece to somebody who takes it; False: nobody does at present."""
        full: set[Address] = set()
        for key, wanted in self._ranges.items():
            to = key[0]
            if to in full or self._send.backlog(to) > BACKLOG_NBYTES:
                full.add(to)
            else:
                self._piece(key, wanted, engine)
                return True
        return False

    def _piece(self, key: Key, wanted: Range, engine: StageEngine) -> None:
        to, request, first, end = key
        upto = min(wanted.end, wanted.start + max(1, PIECE_NBYTES // (engine.token_nbytes * (end - first))))
        try:
            kv = engine.export_kv(request, range(first, end), wanted.start, upto)
        except StageRefusal:  # it was freed or went back; what is held then is told of again
            del self._ranges[key]
            return
        wire, buffers = encode_kv(kv)
        count, groups, width = upto - wanted.start, kv.shape[2], kv.shape[4]
        word = Shadow(self.source, request, first, end, wanted.start, count, groups, width, wire)
        if self._send.post(to, word, tuple(buffers)):
            self.nbytes += sum(b.nbytes for b in buffers)
        wanted.start = upto
        if upto >= wanted.end:
            del self._ranges[key]
