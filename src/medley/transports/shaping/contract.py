"""What the shaper wants of the world: a clock, a model of TCP, and its bounds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


class Timer(Protocol):
    """`medley.runtimes.clock.SystemClock`, or a test's."""

    def now_ns(self) -> int: ...

    async def sleep(self, seconds: float) -> None: ...


class Flight(Protocol):
    """Of what waited, `nbytes` are at the other end at `arrives_s`; from `again_s` on more may be sent."""

    @property
    def nbytes(self) -> int: ...

    @property
    def arrives_s(self) -> float: ...

    @property
    def again_s(self) -> float: ...


class Sender(Protocol):
    """One direction of one connection, on the timer's scale: `medley.policies.tcp.Stream`."""

    def handshake_s(self, now_s: float) -> float: ...

    def flight(self, now_s: float, waiting_nbytes: int) -> Flight: ...


class Connections(Protocol):
    """Makes the two directions of a new connection: what leaves this machine, and what comes to it."""

    def __call__(self) -> tuple[Sender, Sender]: ...


@dataclass(frozen=True, slots=True)
class Limits:
    """Every bound of one machine's shaper."""

    waiting_nbytes: int = 1024 * 1024  # read ahead of the link, in each direction of a connection
    flights: int = 1024  # on their way, in each direction of a connection
    piece_nbytes: int = 64 * 1024
    connections: int = 512
    request_s: float = 10.0
    connect_s: float = 10.0  # a handshake that would take longer fails, as a dialler's patience ends
    grace_s: float = 10.0  # for one direction of a connection, after the other has ended; ZeroMQ closes both at once
    messages: int = 1024  # of the control plane on their way, in each direction
    silent_s: float = 10.0  # a control stream whose next message would take longer is dead, as its keepalive would find


@dataclass(slots=True)
class Moved:
    """Bytes that crossed the link: payload of the tensor plane, encoded messages of the control plane."""

    up_nbytes: int = 0
    down_nbytes: int = 0
