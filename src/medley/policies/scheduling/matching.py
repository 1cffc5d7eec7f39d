"""Stable matching, many to one: no proposer and receiver would both rather have each other (Gale and Shapley 1962).

Deferred acceptance in rounds over numpy arrays: all who are free propose to the best receiver that has not refused
them, every receiver keeps its best up to its capacity. The outcome does not depend on the order of proposals, and is
the best stable one for every proposer.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.float32]
REFUSED = np.float32(-np.inf)  # as a score: this pair is impossible


def deferred_acceptance(wishes: Scores, favours: Scores, capacity: NDArray[np.int64]) -> NDArray[np.int64]:
    """The receiver of each proposer, -1 where nobody takes it.

    `wishes` and `favours` have shape (proposers, receivers): how much a proposer wants a receiver, and how much the
    receiver wants it. Higher is better; equal scores go by the smaller number. `capacity` has shape (receivers,).
    """
    proposers, receivers = wishes.shape
    open_wishes = np.where((favours > REFUSED) & (capacity > 0), wishes, REFUSED).astype(np.float32)
    matched = np.full(proposers, -1, dtype=np.int64)
    held: list[NDArray[np.int64]] = [np.empty(0, dtype=np.int64)] * receivers
    free = np.arange(proposers)
    while free.size:
        rows = open_wishes[free]
        target = rows.argmax(axis=1)
        hopeful = rows[np.arange(free.size), target] > REFUSED
        free, target = free[hopeful], target[hopeful]
        refused: list[NDArray[np.int64]] = []
        order = np.argsort(target, kind="stable")
        free, target = free[order], target[order]
        bounds = np.flatnonzero(np.diff(target)) + 1
        for group in np.split(np.arange(free.size), bounds) if free.size else ():
            receiver = int(target[group[0]])
            lost = _keep_best(receiver, free[group], held, favours, int(capacity[receiver]))
            if lost.size:
                open_wishes[lost, receiver] = REFUSED
                refused.append(lost)
        free = np.sort(np.concatenate(refused)) if refused else np.empty(0, dtype=np.int64)
    for receiver, found in enumerate(held):
        matched[found] = receiver
    return matched


def _keep_best(
    receiver: int, new: NDArray[np.int64], held: list[NDArray[np.int64]], favours: Scores, capacity: int
) -> NDArray[np.int64]:
    """The receiver keeps its best; returns those whom it refuses."""
    both = np.concatenate([held[receiver], new])
    if both.size <= capacity:
        held[receiver] = both
        return both[:0]
    ranked = both[np.lexsort((both, -favours[both, receiver]))]
    held[receiver] = ranked[:capacity]
    return ranked[capacity:]


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
