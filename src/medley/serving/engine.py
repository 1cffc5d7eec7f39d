"""One thread that owns the model: a bounded queue of requests in front, pieces of text out of it.

Active sequences take turns, one forward pass each, so that a long answer does not hold up a short one. A
request that fails or is cancelled ends alone; the thread goes on. Knows the model only as `stream(request)
-> iterator of pieces`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import threading
from collections import deque
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

from medley.protocol.errors import MedleyError

if TYPE_CHECKING:
    from medley.engines.wording import Piece, Request

WAITING_MAX = 64  # requests; the next one is told to come back later
ACTIVE_MAX = 8  # sequences with a cache at once

Event = tuple[int, "Piece"] | MedleyError
log = logging.getLogger(__name__)


STOPPING = "the server is stopping"


class Overloaded(MedleyError):
    """The queue is full."""


class Stopping(MedleyError):
    """The server is being stopped."""


class Unanswered(MedleyError):
    """The machines could not answer; the sentence says why."""


class Left(MedleyError):
    """The client went away."""


class Broken(MedleyError):
    """The engine failed in a way nobody expected; its cause is in the log."""


class Streams(Protocol):
    """What the engine needs of a generator."""

    def stream(self, request: Request) -> Iterator[Piece]: ...


class Answering(Protocol):
    """What the API needs of whoever answers: this module's `Engine`, or a pipeline of machines."""

    @property
    def active(self) -> int: ...

    def start(self) -> None: ...

    def close(self) -> None: ...

    @property
    def alive(self) -> bool: ...

    def submit(self, requests: Sequence[Request]) -> Ticket: ...


class Ticket:
    """One submitted request: iterate over (choice, piece); `cancel` when nobody listens any more."""

    def __init__(self, requests: Sequence[Request]) -> None:
        self.requests = tuple(requests)
        self.cancelled = threading.Event()
        self._loop = asyncio.get_running_loop()
        # At most one event for each token of each sequence: bounded by the context.
        self._events: asyncio.Queue[Event] = asyncio.Queue()

    def cancel(self) -> None:
        """The engine drops its sequences at their next turn."""
        self.cancelled.set()

    def leave(self) -> None:
        """Cancels, and wakes whoever iterates with `Left`."""
        self.cancel()
        self._events.put_nowait(Left("the client went away"))

    def deliver(self, event: Event) -> None:
        """Called by the engine's thread."""
        try:
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)
        except RuntimeError:  # the loop is closed: nobody listens
            self.cancelled.set()

    async def __aiter__(self) -> AsyncIterator[tuple[int, Piece]]:
        unfinished = len(self.requests)
        try:
            while unfinished:
                event = await self._events.get()
                if isinstance(event, MedleyError):
                    raise event
                unfinished -= bool(event[1].finish)
                yield event
        finally:
            self.cancel()


Turn = tuple[Ticket, int, "Iterator[Piece]"]  # one sequence: whose it is, which choice, and its next pieces


class Engine:
    """Start with `start`, end with `close`; `submit` from a running event loop."""

    def __init__(self, generator: Streams, waiting_max: int = WAITING_MAX, active_max: int = ACTIVE_MAX) -> None:
        self._generator = generator
        self.active = 0  # sequences under way, for people to see
        self._active_max = active_max
        self._waiting: queue.Queue[Ticket | None] = queue.Queue(waiting_max)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="medley-engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self, timeout_s: float = 10.0) -> None:
        """Ends what is under way with `Stopping` and waits for the thread."""
        self._closing.set()
        with contextlib.suppress(queue.Full):
            self._waiting.put_nowait(None)  # wakes an idle thread
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    @property
    def alive(self) -> bool:
        return self._thread.is_alive() and not self._closing.is_set()

    def submit(self, requests: Sequence[Request]) -> Ticket:
        """Raises Overloaded when the queue is full and Stopping after `close`."""
        if not self.alive:
            raise Stopping(STOPPING)
        ticket = Ticket(requests)
        try:
            self._waiting.put_nowait(ticket)
        except queue.Full:
            raise Overloaded(f"{self._waiting.maxsize} requests are waiting already: try again later") from None
        return ticket

    def _run(self) -> None:
        active: list[Turn] = []
        admitted: deque[Turn] = deque()  # of the ticket taken last: its sequences may exceed the free places
        while not self._closing.is_set():
            self._admit(active, admitted)
            active = [turn for turn in active if _advance(*turn)]
            self.active = len(active)
        self.active = 0
        for ticket, _, _ in [*active, *admitted]:
            ticket.deliver(Stopping(STOPPING))
        while not self._waiting.empty():
            waiting = self._waiting.get_nowait()
            if waiting is not None:
                waiting.deliver(Stopping(STOPPING))

    def _admit(self, active: list[Turn], admitted: deque[Turn]) -> None:
        """Fills free places, from the queue too; waits for work only when there is none."""
        while len(active) < self._active_max:
            if not admitted:
                try:
                    ticket = self._waiting.get(block=not active)
                except queue.Empty:
                    return
                if ticket is None:
                    return
                admitted.extend((ticket, i, self._generator.stream(r)) for i, r in enumerate(ticket.requests))
            active.append(admitted.popleft())


def _advance(ticket: Ticket, choice: int, pieces: Iterator[Piece]) -> bool:
    """One step of one sequence; whether it goes on."""
    if ticket.cancelled.is_set():
        return False
    try:
        piece = next(pieces)
    except Exception as error:  # the edge of the engine: whatever a request does, only that request ends
        ticket.deliver(_told(error))
        ticket.cancel()
        return False
    if piece.text or piece.tokens or piece.finish:
        ticket.deliver((choice, piece))
    return not piece.finish


def _told(error: Exception) -> MedleyError:
    if isinstance(error, MedleyError):
        return error
    log.error("a request failed in the engine", exc_info=error)
    return Broken("the server failed to answer this request; its log says why")
