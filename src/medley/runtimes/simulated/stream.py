"""One control connection of one node: in order while it lives, and what was on its way is lost with it.

Every message crosses as bytes, by the codec of production. Loss and outages cost time; an outage that lasts costs the
stream, as keepalive does it in production, and each side notices in its own time. What TCP hides from production
(a message said twice, an old one that comes again, a damaged one) happens only where a `Meddle` makes it happen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from medley.protocol import messages as m
from medley.protocol import wire
from medley.protocol.errors import FrameError
from medley.protocol.traffic import class_of
from medley.runtimes.simulated.kernel import MS, S
from medley.runtimes.simulated.watch import COORDINATOR

if TYPE_CHECKING:
    from medley.runtimes.simulated.coordinator import CoordinatorHost
    from medley.runtimes.simulated.node import Node
    from medley.runtimes.simulated.world import World

KEEPALIVE_NS = 10 * S  # a connection that carries nothing for so long is dead
HELD_LOOK_NS = 250 * MS
REPEATED = (m.Heartbeat, m.UpdateReady)  # most say what the one before said


@dataclass(frozen=True, slots=True)
class Parcel:
    """Bytes that arrive `delay_ns` later than they should; out of order if `in_order` is False."""

    data: bytes
    delay_ns: int = 0
    in_order: bool = True


# What a fault makes of one message: parcels instead of it, or None for the end of the stream. `up` is to the
# coordinator.
Meddle = Callable[["Stream", bool, m.Message, bytes], Sequence[Parcel] | None]


@dataclass(slots=True, eq=False)
class Way:
    """One direction: when the last message arrives, and what an outage holds back.

    Its codec is that of production, and remembers the newest message of the kinds that are said again and again: nobody
    can change a message, so the same object is the same bytes, and equal bytes are equal messages.
    """

    source: str
    target: str
    last_ns: int = 0
    held: list[bytes] = field(default_factory=list)
    held_ns: int = 0
    said: dict[type, tuple[m.Message, bytes]] = field(default_factory=dict)
    heard: dict[type, tuple[m.Message, bytes]] = field(default_factory=dict)

    def encode(self, message: m.Message) -> bytes:
        known = self.said.get(type(message))
        if known is not None and known[0] is message:
            return known[1]
        data = wire.encode(message)  # type: ignore[arg-type]
        if type(message) in REPEATED:
            self.said[type(message)] = (message, data)
        return data

    def decode(self, data: bytes) -> Any:
        """Raises FrameError."""
        for message, known in self.heard.values():
            if known == data:
                return message
        heard = wire.decode_message(data)
        if type(heard) in REPEATED:
            self.heard[type(heard)] = (heard, data)
        return heard


class Stream:
    def __init__(self, world: World, node: Node, host: CoordinatorHost, boot: str) -> None:
        self.world, self.node, self.host = world, node, host
        self.boot = boot
        self.open = True  # as the node sees it
        self.welcomed = False
        self.broken = False
        self.up = Way(node.name, COORDINATOR)
        self.down = Way(COORDINATOR, node.name)

    def to_coordinator(self, message: m.FromNode) -> None:
        self._send(self.up, message)

    def to_node(self, message: m.ToNode) -> None:
        self._send(self.down, message)

    # -- on its way -------------------------------------------------------------------------------------------

    def _send(self, way: Way, message: m.Message) -> None:
        world = self.world
        data = way.encode(message)
        world.trace.mix(data)
        if world.meddle is None:
            self._carry(way, message, data, 0, True)
            return
        parcels = world.meddle(self, way is self.up, message, data)
        if parcels is None:
            self.cut()
            return
        for parcel in parcels:
            self._carry(way, message, parcel.data, parcel.delay_ns, parcel.in_order)

    def _carry(self, way: Way, message: m.Message, data: bytes, delay_ns: int, in_order: bool) -> None:
        world, nbytes = self.world, len(data)
        if world.observers:
            world.count_control(way.source, way.target, nbytes)
        kernel = world.kernel
        due = kernel.now + delay_ns + world.network.delay_ns(way.source, way.target, class_of(message), nbytes)
        if in_order:
            way.last_ns = due = due if due > way.last_ns else way.last_ns + 1
        kernel.at(due, self._arrive, way, data)

    def _arrive(self, way: Way, data: bytes) -> None:
        if self.broken:
            return
        network = self.world.network
        if way.held or (network.blocked and network.is_blocked(way.source, way.target)):
            self._hold(way, data)
        else:
            self._deliver(way, data)

    def _deliver(self, way: Way, data: bytes) -> None:
        try:
            message = way.decode(data)
        except FrameError as error:
            self.world.note(way.target, "refused", f"{error}")
            self.cut()
            return
        if way is self.up:
            self.host.heard(self, message)
        elif self.open and self.node.alive and self.node.stream is self:
            self.node.told(message)

    def _hold(self, way: Way, data: bytes) -> None:
        """Nothing gets through just now: TCP tries again, for as long as keepalive lets it."""
        if not way.held:
            way.held_ns = self.world.kernel.now
            self.world.kernel.after(HELD_LOOK_NS, self._look, way)
        way.held.append(data)

    def _look(self, way: Way) -> None:
        if self.broken:
            return
        now = self.world.kernel.now
        if not self.world.network.is_blocked(way.source, way.target):
            held, way.held = way.held, []
            for data in held:
                if not self.broken:
                    self._deliver(way, data)
        elif now - way.held_ns > KEEPALIVE_NS:
            self.cut()
        else:
            self.world.kernel.after(HELD_LOOK_NS, self._look, way)

    # -- its end ----------------------------------------------------------------------------------------------

    def cut(self) -> None:
        """The link is gone; both sides find out later."""
        if self.broken:
            return
        self.broken = True
        self.world.note(self.node.name, "cut", f"the stream of life {self.boot} ends")
        self.world.kernel.after(self.world.jitter(200 * MS), self._node_notices)
        self.world.kernel.after(self.world.jitter(400 * MS), self.host.stream_ended, self)

    def _node_notices(self) -> None:
        if self.open:
            self.open = False
            self.node.stream_ended(int(self.boot))
