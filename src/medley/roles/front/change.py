"""A pipeline on its way to other hops: what is loaded and copied for that, and how far the copies are.

Holds no decision: `layouts` begins it, looks at it with every tick, and ends it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from medley.policies.pipeline.repair import Part
from medley.protocol.ids import NodeId
from medley.protocol.messages import Address
from medley.protocol.stages.events import FrontEffect, Post
from medley.protocol.stages.words import NOWHERE, AskHeld, Hop, Replicate
from medley.roles.front.machines import MachineView
from medley.roles.front.numbers import Numbers
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

    def copy(self, hops: Iterable[Hop], known: Mapping[NodeId, MachineView], numbers: Numbers) -> list[FrontEffect]:
        """Of all layers that move, from whoever has them to whoever gets them."""
        self.copying = True
        for hop in hops:
            for part in self.parts:
                first, end = max(hop.first, part.first), min(hop.end, part.end)
                if first < end and part.machine != hop.node:
                    word = Replicate(numbers.next(), first, end, part.machine, known[part.machine].address)
                    self.copies.append((hop.address, word))
        return [Post(address, word) for address, word in self.copies]

    def ask(self, known: Mapping[NodeId, MachineView], numbers: Numbers) -> list[FrontEffect]:
        """How far the copies are, once the last question is answered."""
        if self.asked:
            return []
        self.asked = {numbers.next(): part for part in self.parts}
        return [
            Post(known[part.machine].address, AskHeld(number, 0, part.first, part.end))
            for number, part in self.asked.items()
        ]

    def behind(self, requests: Iterable[Request]) -> int:
        """Positions that the worst copy lacks of the requests under way."""
        if len(self.held) < len(self.parts):
            return 1 << 30
        live = [r for r in requests if r.opened]
        lacks = [max(0, r.sent - held.get(r.id, 0)) for held in self.held.values() for r in live]
        return max(lacks, default=0)

    def stops(self) -> list[FrontEffect]:
        """The copies are not wanted any more."""
        return [Post(to, replace(word, address=NOWHERE)) for to, word in self.copies]
