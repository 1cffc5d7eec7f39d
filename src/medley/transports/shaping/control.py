"""The control plane's messages under a link's conditions, each class of traffic under its own.

They share one stream, so order is kept between classes too: a message waits for those before it. The bytes of TLS and
HTTP/2 around them, and their keepalive, are not shaped; a stream that would have died of silence is ended instead.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar

from medley.protocol import wire
from medley.protocol.conditions import CLASSES, TrafficClass
from medley.transports.shaping.contract import Connections, Limits, Moved, Sender, Timer
from medley.transports.shaping.pipe import now_s, until

TLS_UP_NBYTES, TLS_DOWN_NBYTES = 3000, 3000  # a mutual handshake with certificates of ours
Item = TypeVar("Item")


class SilentLink(TimeoutError):
    """The link carries nothing for so long that keepalive would have ended the stream."""


class ControlLink:
    """One machine's link as its control streams meet it. `connections` makes streams for a class of traffic."""

    def __init__(
        self,
        connections: Callable[[TrafficClass], Connections],
        timer: Timer,
        limits: Limits | None = None,
        moved: Moved | None = None,
    ) -> None:
        self._connections, self.timer, self.limits = connections, timer, limits or Limits()
        self.moved = moved or Moved()

    def converse(self) -> Conversation:
        """For one attempt to hold a stream."""
        return Conversation({one: self._connections(one)() for one in CLASSES}, self)


class Conversation:
    """One control stream: when what is said on it arrives."""

    def __init__(self, streams: dict[TrafficClass, tuple[Sender, Sender]], link: ControlLink) -> None:
        self._link = link
        self._up: dict[TrafficClass, _Way] = {one: _Way(up) for one, (up, _) in streams.items()}
        self._down: dict[TrafficClass, _Way] = {one: _Way(down) for one, (_, down) in streams.items()}

    async def open(self) -> str:
        """Let the time of TCP's and TLS's handshakes pass; why they came to nothing, else an empty sentence."""
        limits, began_s = self._link.limits, now_s(self._link.timer)
        up, down = self._up["task"], self._down["task"]
        at_s = began_s + up.sender.handshake_s(began_s)
        if at_s - began_s <= limits.silent_s:
            at_s = up.arrival_s(at_s, TLS_UP_NBYTES, limits.silent_s)
            at_s = down.arrival_s(at_s, TLS_DOWN_NBYTES, limits.silent_s)
        await until(self._link.timer, min(at_s, began_s + limits.silent_s))
        return "no connection: the emulated link carries nothing" if at_s - began_s > limits.silent_s else ""

    def up(self) -> Lane[bytes]:
        return Lane(self._up, self._link, self._count_up)

    def down(self) -> Lane[wire.Envelope]:
        return Lane(self._down, self._link, self._count_down)

    def _count_up(self, nbytes: int) -> None:
        self._link.moved.up_nbytes += nbytes

    def _count_down(self, nbytes: int) -> None:
        self._link.moved.down_nbytes += nbytes


class _Way:
    """One class's stream in one direction."""

    def __init__(self, sender: Sender) -> None:
        self.sender = sender
        self._free_s = 0.0

    def arrival_s(self, at_s: float, nbytes: int, patience_s: float) -> float:
        """When a message that is sent now is there; some moment beyond patience when it takes longer than that."""
        ends_s = at_s + patience_s
        start_s = arrives_s = max(at_s, self._free_s)
        while nbytes > 0 and start_s <= ends_s:
            flight = self.sender.flight(start_s, nbytes)
            nbytes -= flight.nbytes
            start_s = flight.again_s
            arrives_s = max(arrives_s, flight.arrives_s)
        self._free_s = start_s
        return arrives_s if nbytes <= 0 else max(start_s, ends_s + 1.0)


class Lane(Generic[Item]):
    """Messages on their way in one direction: bounded, in order, each there when it is due."""

    def __init__(self, ways: dict[TrafficClass, _Way], link: ControlLink, moved: Callable[[int], None]) -> None:
        self._ways, self._timer, self._limits, self._moved = ways, link.timer, link.limits, moved
        self._items: asyncio.Queue[tuple[float, Item]] = asyncio.Queue(link.limits.messages)
        self._last_s = 0.0

    async def put(self, item: Item, nbytes: int, traffic: TrafficClass) -> None:
        """Send a message; waits only while the lane is full. Raises SilentLink."""
        at_s = now_s(self._timer)
        due_s = max(self._last_s, self._ways[traffic].arrival_s(at_s, nbytes, self._limits.silent_s))
        if due_s - at_s > self._limits.silent_s:
            raise SilentLink("the emulated link carries nothing")
        self._last_s = due_s
        self._moved(nbytes)
        await self._items.put((due_s, item))

    async def take(self) -> Item:
        """The next message, when it has arrived."""
        due_s, item = await self._items.get()
        await until(self._timer, due_s)
        return item
