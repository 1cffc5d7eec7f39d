"""Posts between the processes of a serving: one way, in order on a connection, lost when that breaks.

Words go through the production codec, and what is behind them is counted by its bytes. While nothing gets from one
machine to another, posts wait as in a socket; a connection that stays so breaks, and takes what waited with it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from medley.policies.pipeline.describe import ModelShape
from medley.protocol.ids import NodeId
from medley.protocol.messages import Address
from medley.protocol.stages.words import Knock, Pass, Shadow, Word, pack, tokens_of, unpack
from medley.runtimes.simulated.kernel import MS, S

if TYPE_CHECKING:
    from medley.runtimes.simulated.serving.world import ServingWorld

LOCAL_NS = 20_000
BREAKS_NS = 10 * S
LOOK_NS = 20 * MS
Listener = Callable[[NodeId, Word, Any], None]


@dataclass(slots=True, eq=False)
class Way:
    """From one process to another. `life` counts connections: what was sent on an older one never arrives."""

    source: NodeId
    target: NodeId
    life: int = 0
    last_ns: int = 0
    held: list[tuple[bytes, Any]] = field(default_factory=list)
    held_ns: int = 0


class Wires:
    def __init__(self, world: ServingWorld) -> None:
        self.world = world
        self.listeners: dict[Address, tuple[NodeId, Listener]] = {}
        self._ways: dict[tuple[Address, Address], Way] = {}
        self._busy: dict[tuple[NodeId, NodeId], int] = {}  # until when a link is taken

    def listen(self, address: Address, node: NodeId, listener: Listener) -> None:
        self.listeners[address] = node, listener

    def close(self, address: Address) -> None:
        """A process ended: what it had not sent, and what was on its way to it, is lost."""
        self.listeners.pop(address, None)
        for ends, way in self._ways.items():
            if address in ends:
                self._break(way)

    def post(self, source: Address, node: NodeId, to: Address, word: Word, body: Any = None) -> None:
        """To where nobody listens any more it is lost."""
        world = self.world
        data = pack(word)
        world.trace.mix(data)
        if to not in self.listeners:
            return
        way = self._ways.get((source, to))
        if way is None:
            way = self._ways[source, to] = Way(node, self.listeners[to][0])
        kind = type(word).__name__
        if world.chance("post lost", kind):
            self._break(way)
            return
        for _ in range(2 if world.chance("post twice", kind) else 1):
            late_ns = world.late_ns() if world.chance("post late", kind) else 0
            self._send(way, to, data, body, len(data) + nbytes_behind(word, world.setup.shape), late_ns)

    def _send(self, way: Way, to: Address, data: bytes, body: Any, nbytes: int, late_ns: int) -> None:
        kernel, network = self.world.kernel, self.world.network
        if way.source == way.target:
            delay_ns = LOCAL_NS
        else:
            link = way.source, way.target
            taken_ns = network.occupied_ns(way.source, way.target, "ps_sync", nbytes)
            free_ns = max(kernel.now, self._busy.get(link, 0))
            self._busy[link] = free_ns + taken_ns
            delay_ns = self._busy[link] - kernel.now + network.delay_ns(way.source, way.target, "ps_sync", 0)
        due = max(kernel.now + delay_ns + late_ns, way.last_ns + 1)
        way.last_ns = due
        kernel.at(due, self._arrive, way, way.life, to, data, body)

    def _arrive(self, way: Way, life: int, to: Address, data: bytes, body: Any) -> None:
        if life != way.life:
            return
        if way.held or self.world.network.is_blocked(way.source, way.target):
            if not way.held:
                way.held_ns = self.world.kernel.now
                self.world.kernel.after(LOOK_NS, self._look, way, life, to)
            way.held.append((data, body))
            return
        self._deliver(way, to, data, body)

    def _deliver(self, way: Way, to: Address, data: bytes, body: Any) -> None:
        word, _ = unpack(memoryview(data))
        found = self.listeners.get(to)
        if found is not None:
            found[1](way.source, word, body)

    def _look(self, way: Way, life: int, to: Address) -> None:
        if life != way.life:
            return
        now = self.world.kernel.now
        if not self.world.network.is_blocked(way.source, way.target):
            held, way.held = way.held, []
            for data, body in held:
                if life == way.life:
                    self._deliver(way, to, data, body)
        elif now - way.held_ns > BREAKS_NS:
            self._break(way)
        else:
            self.world.kernel.after(LOOK_NS, self._look, way, life, to)

    def _break(self, way: Way) -> None:
        way.life += 1
        way.held = []


def nbytes_behind(word: Word, shape: ModelShape) -> int:
    match word:
        case Pass(wire="tokens"):
            return 4 * tokens_of(word)
        case Pass():
            return shape.wire_nbytes * tokens_of(word)
        case Knock(nbytes=nbytes):
            return nbytes
        case Shadow():
            return shape.kv_nbytes * word.count * (word.end - word.first)
        case _:
            return 0
