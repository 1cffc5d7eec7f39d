"""The next leases are made ready in the background while the present one computes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Prefetcher(Generic[K, V]):
    """Runs `make` on one thread, for at most `depth` keys ahead; the oldest that nobody took is dropped."""

    def __init__(self, make: Callable[[K], V], depth: int = 2) -> None:
        self._make = make
        self._depth = depth
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
        self._ahead: OrderedDict[K, Future[V]] = OrderedDict()

    def request(self, key: K) -> None:
        """Start making `key` unless that is under way."""
        if key in self._ahead:
            return
        while len(self._ahead) >= self._depth:
            self._ahead.popitem(last=False)[1].cancel()
        self._ahead[key] = self._pool.submit(self._make, key)

    def take(self, key: K) -> V:
        """The made value, waiting for it where needed; what `make` raised is raised here."""
        ahead = self._ahead.pop(key, None)
        return self._make(key) if ahead is None else ahead.result()

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
