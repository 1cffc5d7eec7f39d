"""One direction of a shaped connection: read, wait as the model of TCP says, write.

Promises: order and content are kept; what is read ahead and what is on its way is bounded, so a slow link slows its
sender; a late event loop does not slow the link, because times follow from the model and not from each other's delays.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from medley.concurrency import TaskGroup
from medley.transports.shaping.contract import Limits, Sender, Timer


class Waiting:
    """Bytes that were read and have not left yet: bounded; ends once."""

    def __init__(self, limit_nbytes: int) -> None:
        self._limit_nbytes = limit_nbytes
        self._pieces: deque[memoryview] = deque()
        self._stir = asyncio.Event()
        self.nbytes = 0
        self.ended = False

    async def put(self, data: bytes) -> None:
        while self.nbytes >= self._limit_nbytes:
            await self._stirred()
        self._pieces.append(memoryview(data))
        self.nbytes += len(data)
        self._stir.set()

    def end(self) -> None:
        self.ended = True
        self._stir.set()

    async def some(self) -> bool:
        """Wait for bytes; False at the end."""
        while not self.nbytes and not self.ended:
            await self._stirred()
        return self.nbytes > 0

    def take(self, nbytes: int) -> list[memoryview]:
        taken = []
        self.nbytes -= nbytes
        while nbytes:
            piece = self._pieces.popleft()
            if len(piece) > nbytes:
                self._pieces.appendleft(piece[nbytes:])
                piece = piece[:nbytes]
            taken.append(piece)
            nbytes -= len(piece)
        self._stir.set()
        return taken

    async def _stirred(self) -> None:
        self._stir.clear()
        await self._stir.wait()


class Pipe:
    """From a reader to a writer, through one direction of a link."""

    def __init__(self, sender: Sender, timer: Timer, limits: Limits, moved: Callable[[int], None]) -> None:
        self._sender, self._timer, self._limits, self._moved = sender, timer, limits, moved
        self._waiting = Waiting(limits.waiting_nbytes)
        self._air: asyncio.Queue[tuple[float, list[memoryview]] | None] = asyncio.Queue(limits.flights)

    async def run(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Until the reader's end has arrived at the writer. Raises OSError when either is gone."""
        async with TaskGroup() as tasks:
            tasks.create_task(self._fill(reader))
            tasks.create_task(self._fly())
            tasks.create_task(self._land(writer))

    async def _fill(self, reader: asyncio.StreamReader) -> None:
        while data := await reader.read(self._limits.piece_nbytes):
            await self._waiting.put(data)
        self._waiting.end()

    async def _fly(self) -> None:
        at_s = now_s(self._timer)
        while True:
            idle = not self._waiting.nbytes
            if not await self._waiting.some():
                await self._air.put(None)
                return
            at_s = max(at_s, now_s(self._timer)) if idle else at_s
            flight = self._sender.flight(at_s, self._waiting.nbytes)
            if flight.nbytes:
                await self._air.put((flight.arrives_s, self._waiting.take(flight.nbytes)))
                self._moved(flight.nbytes)
            at_s = flight.again_s
            await until(self._timer, at_s)

    async def _land(self, writer: asyncio.StreamWriter) -> None:
        while (landing := await self._air.get()) is not None:
            arrives_s, pieces = landing
            await until(self._timer, arrives_s)
            writer.writelines(pieces)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()


def now_s(timer: Timer) -> float:
    return timer.now_ns() / 1e9


async def until(timer: Timer, at_s: float) -> None:
    """Wait for a moment on the timer's scale; no time passes when it is over already."""
    left_s = at_s - now_s(timer)
    if left_s > 0:
        await timer.sleep(left_s)
