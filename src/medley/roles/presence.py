"""Which machines are here: who is silent, whose stream has ended, and when either means that a machine is gone.

A stream that ended may come back for a moment before its machine is given up, and what it had stays with it for a
while longer. Leaves to the coordinator what follows.
"""

from __future__ import annotations

from collections import deque
from heapq import heappop, heappush

from medley.policies.liveness import least_ns, limit_ns
from medley.protocol.ids import NS_PER_S, NodeId
from medley.roles.allotment import AWAY_NS
from medley.roles.context import NodeView

RECONNECT_NS = NS_PER_S // 2  # a stream that ended may come back within this before its leases are given away
REMEMBERED = 16  # intervals between a machine's heartbeats


class Presence:
    """Of the machines in `pool`, which beat once in `heartbeat_ns`."""

    def __init__(self, pool: dict[NodeId, NodeView], heartbeat_ns: int) -> None:
        self._pool = pool
        self._heartbeat_ns = heartbeat_ns
        self._least_ns = least_ns(heartbeat_ns)
        self._intervals: dict[NodeId, deque[int]] = {}
        self._away: set[NodeId] = set()
        self._gone: deque[tuple[int, NodeId]] = deque()  # when a machine that was given up stops being anybody's
        self._looks: list[tuple[int, NodeId]] = []  # when to look whether a machine is silent
        self._watched: set[NodeId] = set()  # who is in it: once each, however often they come and go

    # -- what machines do ---------------------------------------------------------------------------------------

    def watch(self, view: NodeView, now_ns: int) -> None:
        """A machine that was not here before."""
        self._look(view.node, now_ns)

    def back(self, view: NodeView, now_ns: int) -> None:
        """A machine that is known has said Hello."""
        if not view.connected:
            self.watch(view, now_ns)
        view.connected, view.given_up, view.lost_ns, view.heard_ns = True, False, 0, now_ns
        self._away.discard(view.node)

    def beat(self, view: NodeView, now_ns: int) -> None:
        intervals = self._intervals.get(view.node)
        if intervals is None:
            intervals = self._intervals[view.node] = deque(maxlen=REMEMBERED)
        intervals.append(now_ns - view.heard_ns)

    def away(self, view: NodeView, now_ns: int) -> None:
        """Its stream ended."""
        view.connected, view.lost_ns = False, now_ns
        self._away.add(view.node)

    def left(self, node: NodeId) -> None:
        """It need not come back."""
        self._away.discard(node)

    def give_up(self, view: NodeView) -> None:
        view.given_up = True
        self._away.discard(view.node)
        self._gone.append((view.lost_ns, view.node))

    # -- what time tells ----------------------------------------------------------------------------------------

    def silent(self, now_ns: int) -> list[NodeView]:
        """Connected machines that have been silent for too long; the others are looked at when they might be."""
        found = []
        while self._looks and self._looks[0][0] < now_ns:
            view = self._pool[heappop(self._looks)[1]]
            self._watched.discard(view.node)
            if not view.connected:
                continue
            patience_ns = self._least_ns
            if now_ns - view.heard_ns > patience_ns:
                patience_ns = limit_ns(self._intervals.get(view.node, ()), self._heartbeat_ns)
            if now_ns - view.heard_ns <= patience_ns:
                self._look(view.node, view.heard_ns + patience_ns)
            else:
                found.append(view)
        return found

    def _look(self, node: NodeId, at_ns: int) -> None:
        if node not in self._watched:
            self._watched.add(node)
            heappush(self._looks, (at_ns, node))

    def missed(self, now_ns: int) -> list[NodeView]:
        """Machines that did not come back in time."""
        return [self._pool[node] for node in sorted(self._away) if now_ns - self._pool[node].lost_ns > RECONNECT_NS]

    def forgotten(self, now_ns: int) -> bool:
        """True when a machine that stays away has become nobody's since the last look."""
        news = False
        while self._gone and now_ns - self._gone[0][0] > AWAY_NS:
            self._gone.popleft()
            news = True
        return news
