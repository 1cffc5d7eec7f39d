"""Stable matching, many to one: no proposer and receiver would both rather have each other (Gale and Shapley 1962).

Deferred acceptance in rounds over numpy arrays: all who are free propose to the best receiver that may still take them,
every receiver keeps its best up to its capacity. Proposals that are sure to be refused are skipped, which changes
nothing: the outcome does not depend on the order of proposals, and is the best stable one for every proposer.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.float32]
FEW = 64  # proposers for whom a round over all receivers is not worth it
CHUNK = 128  # rows at once: what a processor's cache holds
REFUSED = np.float32(-np.inf)  # as a score: this pair is impossible


def deferred_acceptance(wishes: Scores, favours: Scores, capacity: NDArray[np.int64]) -> NDArray[np.int64]:
    """The receiver of each proposer, -1 where nobody takes it.

    `wishes` and `favours` have shape (proposers, receivers): how much a proposer wants a receiver, and how much the
    receiver wants it. Higher is better; equal scores go by the smaller number. `capacity` has shape (receivers,).
    """
    market = _Market(wishes, favours, capacity)
    free = np.arange(wishes.shape[0])
    while free.size > FEW:
        free = market.one_round(free)
    market.one_by_one(free.tolist())
    return market.matched


class _Market:
    """`least` is what a full receiver's worst is worth to it: whoever is worth less need not propose, ever."""

    def __init__(self, wishes: Scores, favours: Scores, capacity: NDArray[np.int64]) -> None:
        self.favours, self.capacity = favours, capacity
        self.open = np.where((favours > REFUSED) & (capacity > 0), wishes, REFUSED).astype(np.float32)
        self.least = np.full(wishes.shape[1], REFUSED, dtype=np.float32)
        self.matched = np.full(wishes.shape[0], -1, dtype=np.int64)

    def one_round(self, free: NDArray[np.int64]) -> NDArray[np.int64]:
        """All propose at once, receivers keep their best; returns those who are free afterwards and may go on."""
        for begin in range(0, free.size, CHUNK):
            some = free[begin : begin + CHUNK]
            rows = np.where(self.favours[some] >= self.least, self.open[some], REFUSED)
            target = rows.argmax(axis=1)
            hopeful = rows[np.arange(some.size), target] > REFUSED
            self.matched[some[hopeful]] = target[hopeful]
        who = np.flatnonzero(self.matched >= 0)
        where = self.matched[who]
        worth = self.favours[who, where]
        order = np.lexsort((who, -worth, where))
        who, where, worth = who[order], where[order], worth[order]
        place = np.arange(who.size) - np.searchsorted(where, where)
        last = place == self.capacity[where] - 1
        self.least[where[last]] = worth[last]
        refused = place >= self.capacity[where]
        self.open[who[refused], where[refused]] = REFUSED
        self.matched[who[refused]] = -1
        return np.sort(who[refused])

    def one_by_one(self, free: list[int]) -> None:
        """The same, for the few who are left: each proposes until somebody has room."""
        held: dict[int, list[tuple[float, int]]] = {}
        while free:
            proposer = free.pop()
            row = np.where(self.favours[proposer] >= self.least, self.open[proposer], REFUSED)
            receiver = int(row.argmax())
            if row[receiver] == REFUSED:
                continue
            found = held.get(receiver)
            if found is None:
                mine = np.flatnonzero(self.matched == receiver).tolist()
                found = held[receiver] = [(float(self.favours[p, receiver]), -p) for p in mine]
                heapify(found)
            heappush(found, (float(self.favours[proposer, receiver]), -proposer))
            self.matched[proposer] = receiver
            if len(found) > self.capacity[receiver]:
                gone = -heappop(found)[1]
                self.matched[gone] = -1
                self.open[gone, receiver] = REFUSED
                free.append(gone)
            if len(found) == self.capacity[receiver]:
                self.least[receiver] = found[0][0]


def is_stable(wishes: Scores, favours: Scores, capacity: NDArray[np.int64], matched: NDArray[np.int64]) -> bool:
    """No pair that is possible would both gain by leaving what they have; ties are broken as in the matching."""
    proposers, receivers = wishes.shape
    for receiver in range(receivers):
        mine = np.flatnonzero(matched == receiver)
        if mine.size > capacity[receiver]:
            return False
        for proposer in range(proposers):
            if not (wishes[proposer, receiver] > REFUSED and favours[proposer, receiver] > REFUSED):
                if matched[proposer] == receiver:
                    return False
                continue
            has = matched[proposer]
            if has == receiver or (
                has >= 0 and (-wishes[proposer, receiver], receiver) > (-wishes[proposer, has], has)
            ):
                continue
            worst = max(((-favours[p, receiver], p) for p in mine), default=None)
            if mine.size < capacity[receiver] or (
                worst is not None and (-favours[proposer, receiver], proposer) < worst
            ):
                return False
    return True
