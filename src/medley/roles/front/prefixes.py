"""Beginnings that the stages still hold: a new request that shares one starts as a copy of it.

Requests that ended are remembered for a while, so long as nobody needs their room; those under way lend, too. All
stages do what the front says, so nothing is negotiated: what one of them holds, all of them do.
"""

from __future__ import annotations

from collections.abc import Iterable

from medley.roles.front.request import Request

REMEMBERED = 16  # ended requests
WORTH_TOKENS = 32  # a shorter beginning is computed faster than it is found


class Prefixes:
    def __init__(self) -> None:
        self._ended: dict[int, Request] = {}  # the oldest first

    @property
    def remembered(self) -> tuple[int, ...]:
        return tuple(self._ended)

    def remember(self, request: Request) -> list[int]:
        """An ended request stays for a while; whose KV is to be freed instead."""
        self._ended[request.id] = request
        return [self._drop() for _ in range(len(self._ended) - REMEMBERED)]

    def make_room(self, free_tokens: int) -> list[int]:
        """Lets go of ended requests until they fit into `free_tokens`; whose KV is to be freed."""
        out = []
        while self._ended and sum(r.reserved for r in self._ended.values()) > free_tokens:
            out.append(self._drop())
        return out

    def clear(self) -> list[int]:
        out, self._ended = list(self._ended), {}
        return out

    def forget(self, request: int) -> None:
        self._ended.pop(request, None)

    def best(self, tokens: list[int], living: Iterable[Request]) -> tuple[int, int]:
        """(request, how many first positions): the longest common beginning; at least one token is left to compute."""
        found = (0, 0)
        for other in [*self._ended.values(), *living]:
            most = min(len(other.tokens), other.sent, len(tokens) - 1)
            length = common(other.tokens, tokens, most) if most > found[1] else 0
            if length >= max(WORTH_TOKENS, found[1] + 1):
                found = (other.id, length)
        return found

    def _drop(self) -> int:
        oldest = next(iter(self._ended))
        del self._ended[oldest]
        return oldest


def common(one: list[int], other: list[int], most: int) -> int:
    """How many first tokens are the same. By halves: many long requests may wait, and every token's way leads here."""
    least = 0
    while least < most:
        middle = (least + most + 1) // 2
        if one[least:middle] == other[least:middle]:
            least = middle
        else:
            most = middle - 1
    return least
