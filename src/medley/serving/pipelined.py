"""Answers from a model on several machines, behind the same API: an event loop of its own, a front, and tickets.

A thread of its own, so that neither HTTP nor a slow client delays a token's way. What is refused here is what a front
can never do; whatever happens to machines it sorts out itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Sequence
from typing import Any

from medley.concurrency import TaskGroup
from medley.engines.wording import Request, Wording
from medley.observe.logs import logger
from medley.protocol.errors import MedleyError
from medley.protocol.messages import Address
from medley.protocol.stages.events import Drain, Emit, Fail, FrontEvent
from medley.roles.front.front import Front
from medley.runtimes.clock import SystemClock
from medley.serving.answers import Answers
from medley.serving.engine import STOPPING, WAITING_MAX, Overloaded, Stopping, Ticket
from medley.serving.front_host import FrontHost, Place
from medley.serving.guessing import Guessing
from medley.transports.control.operator import OperatorClient
from medley.transports.tensors.contract import Keeper

START_S = 60.0
LEFT_S = 0.05  # how often clients that left are looked for
END_S = 5.0


class Pipelined:
    """Start with `start`, end with `close`; `submit` from a running event loop."""

    def __init__(
        self,
        words: Wording,
        place: Place,
        make: Callable[[Address], Front],
        keeper: Keeper,
        operator: Callable[[], OperatorClient],
        draft: bool = True,
        guessing: Guessing | None = None,
        waiting_max: int = WAITING_MAX,
    ) -> None:
        self._answers = Answers(words, draft)
        self.host = FrontHost(place, make, keeper, operator, self._told, guessing)
        self._waiting_max = waiting_max
        self._loop: asyncio.AbstractEventLoop | None = None
        self._main: asyncio.Task[None] | None = None
        self._ready = threading.Event()
        self._closing = False
        self._problem: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="medley-front", daemon=True)

    @property
    def active(self) -> int:
        return len(self._answers)

    def start(self) -> None:
        """Until the coordinator has answered. Raises what it said. Called again, it says the same."""
        if self._thread.ident is None:
            self._thread.start()
        self._ready.wait(START_S)
        if self._problem is not None:
            raise self._problem

    def close(self) -> None:
        self._closing = True
        loop, main = self._loop, self._main
        if loop is not None and main is not None:
            with contextlib.suppress(RuntimeError):  # it has ended by itself
                loop.call_soon_threadsafe(main.cancel)
        if self._thread.is_alive():
            self._thread.join(START_S)

    @property
    def alive(self) -> bool:
        return self._thread.is_alive() and not self._closing

    def submit(self, requests: Sequence[Request]) -> Ticket:
        """Raises Overloaded when too many wait and Stopping after `close`."""
        loop = self._loop
        if not self.alive or loop is None:
            raise Stopping(STOPPING)
        if self.active + len(requests) > self._waiting_max:
            raise Overloaded(f"{self.active} requests are under way or waiting already: try again later")
        ticket = Ticket(requests)
        loop.call_soon_threadsafe(self._begin, ticket)
        return ticket

    def drain(self, node: str) -> None:
        """This machine is to be free: what it holds moves to others."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self.host.post, Drain(node))

    def note(self) -> dict[str, Any]:
        return self.host.note()

    # -- on the front's event loop ------------------------------------------------------------------------------------

    def _begin(self, ticket: Ticket) -> None:
        if self._closing:
            ticket.deliver(Stopping(STOPPING))
            return
        for asked in self._answers.begin(ticket):
            self.host.post(asked)

    def _told(self, effect: Emit | Fail) -> list[FrontEvent]:
        events = self._answers.emitted(effect) if isinstance(effect, Emit) else self._answers.failed(effect)
        return list(events)

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except* MedleyError as problems:
            self._problem = _first(problems)
            if self._ready.is_set():  # else whoever waits for the start is told
                logger("front").error("ended", reason=str(self._problem))
        finally:
            self._ready.set()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._main = asyncio.current_task()
        try:
            async with TaskGroup() as tasks:
                tasks.create_task(self.host.run(self._ready.set))
                tasks.create_task(self._look_after_clients())
        except asyncio.CancelledError:
            pass  # closed
        finally:
            self._closing = True  # also where the front failed: nobody would answer what comes now
            self._answers.close(Stopping(STOPPING))
            with contextlib.suppress(MedleyError, TimeoutError, asyncio.CancelledError):  # closed while it says goodbye
                await asyncio.wait_for(self.host.end(), END_S)

    async def _look_after_clients(self) -> None:
        clock = SystemClock()
        while True:
            await clock.sleep(LEFT_S)
            for event in self._answers.cancelled():
                self.host.post(event)


def _first(problem: BaseException) -> BaseException:
    """The first of the errors in a group of groups."""
    while isinstance(problem, BaseExceptionGroup):
        problem = problem.exceptions[0]
    return problem
