"""How far it is from machine to machine, one pair after the other, before layers are dealt out.

A pair that gives no answer keeps the link that was assumed. Few machines only: pairs grow with their square. Leaves to
`layouts` what the links are for.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

from medley.policies.pipeline.describe import Link, Links
from medley.protocol.ids import NS_PER_S, NodeId
from medley.protocol.stages.events import Post
from medley.protocol.stages.words import Reach, Reached
from medley.roles.front.machines import MachineView
from medley.roles.front.numbers import Numbers

MACHINES_MOST = 12
NBYTES = 1 << 20  # of the large post
SILENT_NS = 3 * NS_PER_S
PATIENCE_NS = 6 * NS_PER_S  # of the first plan, for pairs that are not known yet

Pair = tuple[NodeId, NodeId]


@dataclass(slots=True)
class Distances:
    """`wanted`: False where all machines are one computer."""

    assumed: Links
    wanted: bool
    numbers: Numbers
    known: dict[Pair, Link] = field(default_factory=dict)
    _silent: set[Pair] = field(default_factory=set)
    _asked: dict[int, Pair] = field(default_factory=dict)  # at most one
    _since_ns: int = 0
    _began_ns: int = 0

    @property
    def links(self) -> Links:
        return Links(self.assumed.otherwise, {**self.assumed.known, **self.known})

    def between(self, one: NodeId, other: NodeId) -> Link | None:
        """None where nobody measured it."""
        return self.known.get((one, other)) or self.known.get((other, one))

    def next(self, usable: Sequence[MachineView], now_ns: int) -> list[Post]:
        """The next question, once the last one is answered or was silent for too long."""
        if self._asked and now_ns - self._since_ns < SILENT_NS:
            return []
        self._silent.update(self._asked.values())
        self._asked.clear()
        pair = self._open(usable)
        if pair is None:
            return []
        here, there = pair
        number = self.numbers.next()
        self._asked[number] = (here.node, there.node)
        self._since_ns = now_ns
        return [Post(here.address, Reach(number, there.address, here.address, NBYTES))]

    def heard(self, word: Reached) -> None:
        pair = self._asked.pop(word.number, None)
        if pair is not None and word.rtt_s >= 0 and word.bandwidth_bytes_per_s > 0:
            self.known[pair] = Link(word.rtt_s, word.bandwidth_bytes_per_s)

    def expected(self, usable: Sequence[MachineView], now_ns: int) -> bool:
        """Whether a first plan should wait for what is not known yet."""
        if not self._asked and self._open(usable) is None:
            return False
        self._began_ns = self._began_ns or now_ns
        return now_ns - self._began_ns < PATIENCE_NS

    def _open(self, usable: Sequence[MachineView]) -> tuple[MachineView, MachineView] | None:
        if not self.wanted or not 2 <= len(usable) <= MACHINES_MOST:
            return None
        ended = self.known.keys() | self._silent
        return next((p for p in itertools.combinations(usable, 2) if (p[0].node, p[1].node) not in ended), None)
