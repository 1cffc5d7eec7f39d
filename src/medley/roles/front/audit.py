"""KV that nobody needs any more: what a stage still holds of requests that have ended, or gone elsewhere, is freed.

Whoever should forget a request may not have heard so: a post is lost, a machine was cut off, the one that copied to it
died. So a machine that says it holds more than it can need, or holds anything for long, is asked what, and told.
"""

from __future__ import annotations

from collections.abc import Callable

from medley.protocol.ids import NS_PER_S, NodeId
from medley.protocol.stages.events import FrontEffect, Post
from medley.protocol.stages.words import AskHeld, Free, Held
from medley.roles.front.machines import MachineView
from medley.roles.front.numbers import Numbers

EVERY_NS = 5 * NS_PER_S  # of a machine that has work


class Audit:
    """`layers`: of the whole model. `needed`: requests that this machine may hold something of."""

    def __init__(self, numbers: Numbers, layers: int, needed: Callable[[NodeId], set[int]]) -> None:
        self._numbers, self._layers, self._needed = numbers, layers, needed
        self._asked: dict[int, MachineView] = {}
        self._last_ns: dict[NodeId, int] = {}

    def heard(self, view: MachineView, now_ns: int) -> list[FrontEffect]:
        """Its status has come."""
        status = view.status
        if status is None or not status.requests:
            return []
        calm = status.requests <= len(self._needed(view.node))
        if calm and now_ns - self._last_ns.setdefault(view.node, now_ns) < EVERY_NS:
            return []
        self._last_ns[view.node] = now_ns
        self._asked = {number: other for number, other in self._asked.items() if other.node != view.node}
        number = self._numbers.next()
        self._asked[number] = view
        return [Post(view.address, AskHeld(number, 0, 0, self._layers))]

    def held(self, word: Held) -> list[FrontEffect]:
        view = self._asked.pop(word.number, None)
        if view is None:
            return []
        needed = self._needed(view.node)
        strange = tuple(p.request for p in word.positions if p.request not in needed)
        return [Post(view.address, Free(strange))] if strange else []
