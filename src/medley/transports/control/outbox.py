"""What waits to be written to one stream: bounded in messages and bytes, closed once, with a reason.

One reader (the stream's writer task), any number of putters on the same event loop. Nothing here blocks a
putter.
"""

from __future__ import annotations

import asyncio
from collections import deque


class Outbox:
    """A bounded queue of encoded messages that ends with a sentence."""

    def __init__(self, messages: int, nbytes: int) -> None:
        self._limit_messages = messages
        self._limit_nbytes = nbytes
        self._waiting: deque[bytes] = deque()
        self._nbytes = 0
        self._stir = asyncio.Event()
        self._closed = asyncio.Event()
        self._reason: str | None = None

    def put(self, data: bytes) -> bool:
        """False if closed or full; a full outbox takes nothing, so that order never has holes."""
        full = len(self._waiting) >= self._limit_messages or self._nbytes + len(data) > self._limit_nbytes
        if self._reason is not None or full:
            return False
        self._waiting.append(data)
        self._nbytes += len(data)
        self._stir.set()
        return True

    def close(self, reason: str) -> None:
        """Nothing more goes in; what waits may still come out. The first reason stays."""
        if self._reason is None:
            self._reason = reason
            self._stir.set()
            self._closed.set()

    async def closed(self) -> str:
        """Wait for the end; its reason."""
        await self._closed.wait()
        return self._reason or ""

    async def take(self) -> bytes | None:
        """The oldest message; None when closed and empty."""
        while not self._waiting:
            if self._reason is not None:
                return None
            self._stir.clear()
            await self._stir.wait()
        data = self._waiting.popleft()
        self._nbytes -= len(data)
        return data
