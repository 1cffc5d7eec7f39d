"""What the page needs of the one who mounts it, and a broadcast with a bounded queue for each browser.

A `Feed` shows the present (`snapshot`) and what changes after it (`events`); their shapes are in
docs/page.md. Events only ever set or append, so that one that is already in the snapshot does no harm.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Protocol

from medley.protocol.errors import Unavailable

QUEUE_EVENTS_MAX = 512
CLIENTS_MAX = 64

Event = Mapping[str, Any]
RESYNC: Event = {"kind": "resync"}


class Events(Protocol):
    """Events for one browser, from the moment it was made. `anext` may be cancelled and called again."""

    def __aiter__(self) -> Events: ...

    async def __anext__(self) -> Event: ...

    def close(self) -> None:
        """No more events are collected."""
        ...


class Feed(Protocol):
    """Implemented by whoever knows machines and jobs. Nothing here may block the event loop."""

    def snapshot(self) -> Mapping[str, Any]:
        """Everything the page shows, now."""
        ...

    def events(self) -> Events:
        """A subscription that has begun when this returns. Raises Unavailable when there are too many."""
        ...

    def ask(self, model: str, messages: Sequence[Mapping[str, str]]) -> AsyncIterator[str]:
        """Pieces of an answer, from a process that serves `model`. Raises MedleyError with a sentence."""
        ...


class Subscription:
    """One client's bounded queue. When it overflows, all of it becomes one `resync`."""

    def __init__(self, broadcast: Broadcast, limit: int) -> None:
        self._broadcast = broadcast
        self._queue: asyncio.Queue[Event] = asyncio.Queue(limit)

    def offer(self, event: Event) -> None:
        """Never waits: a browser that does not keep up reads the snapshot again."""
        if self._queue.full():
            while not self._queue.empty():
                self._queue.get_nowait()
            event = RESYNC
        self._queue.put_nowait(event)

    def __aiter__(self) -> Subscription:
        return self

    async def __anext__(self) -> Event:
        return await self._queue.get()

    def close(self) -> None:
        self._broadcast.forget(self)


class Broadcast:
    """Hands every event to every subscriber. Use it from the event loop's own thread."""

    def __init__(self, clients_max: int = CLIENTS_MAX, queue_events_max: int = QUEUE_EVENTS_MAX) -> None:
        self._clients_max = clients_max
        self._queue_events_max = queue_events_max
        self._clients: set[Subscription] = set()

    @property
    def clients(self) -> int:
        return len(self._clients)

    def publish(self, event: Event) -> None:
        for client in self._clients:
            client.offer(event)

    def subscribe(self) -> Subscription:
        """Raises Unavailable when `clients_max` are connected already."""
        if len(self._clients) >= self._clients_max:
            raise Unavailable(f"{self._clients_max} browsers follow this page already: close one of them")
        client = Subscription(self, self._queue_events_max)
        self._clients.add(client)
        return client

    def forget(self, client: Subscription) -> None:
        self._clients.discard(client)
