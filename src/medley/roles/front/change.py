"""A pipeline on its way to other hops: what is loaded and copied for that, and how far the copies are.

Holds no decision: `layouts` begins it, looks at it with every tick, and ends it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from medley.policies.pipeline.repair import Part
from medley.protocol.messages import Address
from medley.protocol.stages.events import FrontEffect, Post
from medley.protocol.stages.words import Replicate
from medley.roles.front.planning import Parts
from medley.roles.front.request import Request


@dataclass(slots=True)
class Change:
    """A pipeline on its way to other hops. `live`: the old ones still work, so KV is copied before the switch."""

    parts: Parts
    why: str
    live: bool
    since_ns: int
    loads: set[int] = field(default_factory=set)
    copies: list[tuple[Address, Replicate]] = field(default_factory=list)
    copying: bool = False
    asked: dict[int, Part] = field(default_factory=dict)
    held: dict[Part, dict[int, int]] = field(default_factory=dict)
    still_ns: int = 0  # since when nothing is in flight any more

    def behind(self, requests: Iterable[Request]) -> int:
        """Positions that the worst copy lacks of the requests under way."""
        if len(self.held) < len(self.parts):
            return 1 << 30
        live = [r for r in requests if r.opened]
        lacks = [max(0, r.sent - held.get(r.id, 0)) for held in self.held.values() for r in live]
        return max(lacks, default=0)

    def stops(self) -> list[FrontEffect]:
        """The copies are not wanted any more."""
        nowhere = Address("", "")
        return [Post(to, Replicate(word.number, word.first, word.end, "", nowhere)) for to, word in self.copies]
