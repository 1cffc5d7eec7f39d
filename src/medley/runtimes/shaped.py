"""One machine's emulated link: a job's network section made into streams for both planes, and the relays they pass.

All connections of the machine share its two bottlenecks and its delays, whichever plane and engine they belong to,
because the node's own process carries the bytes of its engines too. Exists only where a network is described.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from random import Random

from medley.concurrency import TaskGroup
from medley.policies.tcp import Bottleneck, Delay, Stream, bottleneck
from medley.protocol.conditions import Conditions, Network, TrafficClass, conditions_of
from medley.protocol.messages import Address
from medley.runtimes.addresses import split
from medley.runtimes.clock import SystemClock
from medley.transports.shaping import ControlLink, Front, Moved, Proxy, Sender

_LOG = logging.getLogger(__name__)


@dataclass(slots=True)
class Access:
    """One preset's view of this machine's link."""

    conditions: Conditions
    chance: Random
    phase_s: float
    up: Bottleneck = field(init=False)
    down: Bottleneck = field(init=False)
    leaving: Delay = field(init=False)
    coming: Delay = field(init=False)

    def __post_init__(self) -> None:
        self.up, self.down = bottleneck(self.conditions, "up"), bottleneck(self.conditions, "down")
        self.leaving, self.coming = Delay(self.conditions, self.chance), Delay(self.conditions, self.chance)

    def connection(self) -> tuple[Sender, Sender]:
        c, chance = self.conditions, self.chance
        return (
            Stream(c, self.up, self.leaving, self.coming, chance, self.phase_s),
            Stream(c, self.down, self.coming, self.leaving, chance, self.phase_s),
        )


class ShapedLink:
    """`run` serves what engines dial and what dials them; `control` is for the control client."""

    def __init__(self, network: Network, machine: str) -> None:
        """Raises UserError for an unknown preset."""
        self.network = network
        self._machine = machine
        self._accesses: dict[Conditions, Access] = {}
        self._clock = SystemClock()
        self._tasks: TaskGroup | None = None
        self._fronts: list[Front] = []
        self.moved = Moved()
        tensors = self._access("ps_sync")
        self.compute_factor = tensors.conditions.compute_factor
        self.shapes_tensors = tensors.conditions.shaped
        self.proxy = Proxy(tensors.connection, self._clock, moved=self.moved) if self.shapes_tensors else None
        self.control = ControlLink(lambda one: self._access(one).connection, self._clock, moved=self.moved)

    @property
    def shapes_control(self) -> bool:
        return any(self._access(one).conditions.shaped for one in ("heartbeat", "task", "telemetry"))

    def _access(self, traffic: TrafficClass) -> Access:
        conditions = conditions_of(self.network, traffic)
        found = self._accesses.get(conditions)
        if found is None:
            # One phase for all classes: an outage is the machine's.
            phase_s = Random(f"{self.network.seed}/{self._machine}").random() * (conditions.up_s + conditions.down_s)
            chance = Random(f"{self.network.seed}/{self._machine}/{conditions}")
            found = self._accesses[conditions] = Access(conditions, chance, phase_s)
        return found

    def cut(self, up: bool = True, down: bool = True) -> None:
        """A partition: nothing passes in these directions until it is mended with `cut(False, False)`."""
        for access in self._accesses.values():
            access.up.cut, access.down.cut = up, down

    async def run(self) -> None:
        """Serve until cancelled."""
        async with TaskGroup() as tasks:
            self._tasks = tasks
            if self.proxy is not None:
                tasks.create_task(self.proxy.run())
            for front in self._fronts:
                tasks.create_task(front.run())

    def fronted(self, address: Address, host: str, ports: range) -> Address:
        """The address for others of an engine that listens on loopback. OSError when no port is free."""
        target = split(address.endpoint.removeprefix("tcp://"))
        front = self._front(target, host, ports)
        self._fronts.append(front)
        if self._tasks is not None:
            self._tasks.create_task(front.run())
        bracketed = f"[{host}]" if ":" in host else host
        return replace(address, endpoint=f"tcp://{bracketed}:{front.port}")

    def _front(self, target: tuple[str, int], host: str, ports: range) -> Front:
        make: Callable[[int], Front] = lambda port: Front(  # noqa: E731
            host, port, target, self._access("ps_sync").connection, self._clock, moved=self.moved
        )
        for port in ports:
            try:
                return make(port)
            except OSError:
                _LOG.debug("port %d is taken", port)
        return make(0) if not ports else make(ports[-1])
