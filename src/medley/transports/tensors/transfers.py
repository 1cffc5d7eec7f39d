"""What both sides of a transfer share: the shape the engine drives, and what a transfer may ask of the engine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Protocol

from medley.transports.tensors.contract import Limits
from medley.transports.tensors.flow import Incoming, Landing, Outgoing
from medley.transports.tensors.links import Link
from medley.transports.tensors.wire import Flag, Frame, Type


class Transfer(Protocol):
    """One open transfer on one link, driven by the I/O thread."""

    incoming: Incoming | None

    def frame(self, frame: Frame, body: bytes, now: float) -> None: ...

    def landed(self, frame: Frame, nbytes: int, view: memoryview, now: float) -> None: ...

    def flush(self, now: float) -> None: ...

    def tick(self, now: float) -> None: ...

    def cut(self, now: float) -> None: ...


@dataclass(frozen=True, slots=True)
class Host:
    """What transfers need of the engine and the event loop.

    `counters` only grow; `load` says how many handler calls are running. `ask(work, then)` awaits `work()` on the
    event loop and calls `then(result or exception)` on the I/O thread; `tell(call)` runs a plain call on the event
    loop; `dirty(transfer)` has `flush` called after this batch of frames.
    """

    limits: Limits
    counters: Counter[str]
    load: Counter[str]
    ask: Callable[[Callable[[], Awaitable[Any]], Callable[[Any, float], None]], None]
    tell: Callable[[Callable[[], None]], None]
    dirty: Callable[[Transfer], None]


def incoming_of(host: Host, buffer: memoryview, have: int, journal: Callable[[int, int, int], None] | None) -> Incoming:
    limits = host.limits
    return Incoming(
        buffer,
        have,
        limits.window_chunks * limits.chunk_nbytes,
        limits.chunk_nbytes_max,
        limits.resends,
        journal,
    )


def send_credit(link: Link, transfer: int, incoming: Incoming, flags: Flag = Flag.NONE) -> None:
    link.send(Frame(Type.CREDIT, transfer, flags, offset=incoming.have, total=incoming.grant()))


def pump(outgoing: Outgoing, host: Host, transfer: Transfer, now: float) -> None:
    """Send what may be sent, and come back soon when the socket is full."""
    before = outgoing.bytes_sent
    outgoing.pump(now)
    host.counters["bytes_sent"] += outgoing.bytes_sent - before
    if outgoing.blocked:
        host.dirty(transfer)


def settle(link: Link, transfer: int, incoming: Incoming, landing: Landing, host: Host) -> bool:
    """Answer a damaged chunk; False when the transfer cannot go on."""
    match landing:
        case Landing.TAKEN:
            return True
        case Landing.DAMAGED:
            host.counters["chunks_damaged"] += 1
            send_credit(link, transfer, incoming, Flag.REWIND)
            return True
        case Landing.HOPELESS:
            host.counters["chunks_damaged"] += 1
            link.refuse(transfer, "too many damaged chunks")
            return False
        case Landing.UNSTORED:
            host.counters["journal_errors"] += 1
            link.refuse(transfer, "the receiver cannot store the object")
            return False
