"""One machine's emulated link: a job's network section made into streams for both planes, and the relays they pass.

All connections of the machine share its two bottlenecks and its delays, whichever plane and engine they belong to,
because the node's own process carries the bytes of its engines too. Exists only where a network is described.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Any

from medley.concurrency import TaskGroup
from medley.policies.tcp import Bottleneck, Delay, Stream, bottleneck
from medley.protocol.codec import parse
from medley.protocol.conditions import Conditions, Network, TrafficClass, conditions_of
from medley.protocol.engine import Opened, Report
from medley.protocol.ids import JobId
from medley.protocol.messages import Address
from medley.protocol.plan import Plan
from medley.runtimes.addresses import LOOPBACK, split
from medley.runtimes.children.environment import COMPUTE_FACTOR, HOST, LINK, PORTS
from medley.runtimes.clock import SystemClock
from medley.transports.shaping import ControlLink, Front, Moved, Proxy, Sender

MOVED = "network.json"
Engine = tuple[JobId, int]  # a job and its shard, or its stage


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
        self.moved = Moved()
        self._machine = machine
        self._accesses: dict[Conditions, Access] = {}
        self._clock = SystemClock()
        self._serving: asyncio.Queue[Callable[[], Coroutine[Any, Any, None]]] = asyncio.Queue()
        self._fronts: dict[Engine, Front] = {}
        self._tensors = self._access("ps_sync")
        self.compute_factor = self._tensors.conditions.compute_factor
        self.proxy: Proxy | None = None
        if self._tensors.conditions.shaped:
            self.proxy = Proxy(self._tensors.connection, self._clock, moved=self.moved)
            self._serving.put_nowait(self.proxy.run)
        self.control: ControlLink | None = None
        if any(self._access(one).conditions.shaped for one in ("heartbeat", "task", "telemetry")):
            self.control = ControlLink(lambda one: self._access(one).connection, self._clock, moved=self.moved)

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
            while True:
                serve = await self._serving.get()
                tasks.create_task(serve())

    def fronted(self, engine: Engine, address: Address, host: str, wanted: Sequence[int]) -> Address:
        """The address for others of an engine that listens on loopback; any port where none of these is free."""
        self.ended(engine)
        front = self._fronts[engine] = self._front(split(address.endpoint.removeprefix("tcp://")), host, wanted)
        self._serving.put_nowait(front.run)
        bracketed = f"[{host}]" if ":" in host else host
        return replace(address, endpoint=f"tcp://{bracketed}:{front.port}")

    def ended(self, engine: Engine) -> None:
        """Nobody shall dial it any more."""
        front = self._fronts.pop(engine, None)
        if front is not None:
            front.close()

    def _front(self, target: tuple[str, int], host: str, wanted: Sequence[int]) -> Front:
        def at(port: int) -> Front:
            return Front(host, port, target, self._tensors.connection, self._clock, moved=self.moved)

        for port in wanted:
            with contextlib.suppress(OSError):
                return at(port)
        return at(0)


class Shaping:
    """Which emulated link a node stands behind: its own, or that of the job it works for. Usually none at all."""

    def __init__(
        self, own: Network, machine: str, trains: bool, factor: float, room: Path, changed: Callable[[], None]
    ) -> None:
        """`trains`: whether a network of `workers` means this machine; `changed`: `control` is another now."""
        self._machine, self._trains, self._factor, self._changed = machine, trains, factor, changed
        self._file, self._before, self._noted = room / MOVED, read_moved(room), (0, 0)
        self._links: dict[str, ShapedLink] = {}
        self._of_jobs: dict[JobId, ShapedLink] = {}
        self._tasks: asyncio.TaskGroup | None = None
        self._own = self._made(own)

    async def run(self) -> None:
        """Serve until cancelled."""
        async with TaskGroup() as tasks:
            self._tasks = tasks
            for link in self._links.values():
                tasks.create_task(link.run())
            await asyncio.Event().wait()

    @property
    def control(self) -> ControlLink | None:
        link = self._own or next(reversed(self._of_jobs.values()), None)
        return None if link is None else link.control

    def assigned(self, job: JobId, plan: str) -> None:
        """A job comes to this machine; its network does, too, unless the machine has one of its own."""
        if self._own is None and job not in self._of_jobs and (link := self._made(parse(plan, Plan).spec.network)):
            self._of_jobs[job] = link
            self._changed()

    def left(self, job: JobId) -> None:
        """Nothing of that job is here any more."""
        if self._of_jobs.pop(job, None) is not None:
            self._changed()

    def environment(self, job: JobId, is_shard: bool) -> dict[str, str]:
        """What an engine of that job must be told."""
        link = self._own or self._of_jobs.get(job)
        factor = self._factor * (link.compute_factor if link is not None else 1.0)
        told = {COMPUTE_FACTOR: f"{factor:g}"} if factor != 1.0 else {}
        if link is not None and link.proxy is not None:
            told[LINK] = f"{link.proxy.address} {link.proxy.secret}"
            if is_shard:
                told |= {HOST: LOOPBACK, PORTS: ""}  # others dial its front
        return told

    def reported(
        self, engine: Engine, is_shard: bool, report: Report, where: Callable[[], tuple[str, range]]
    ) -> Report:
        """An engine's report as the node may believe it: a shard is reached by its front, which listens at `where`."""
        if not is_shard or not isinstance(report, Opened):
            return report
        link = self._own or self._of_jobs.get(engine[0])
        if link is None or link.proxy is None:
            return report
        return Opened(link.fronted(engine, report.address, *where()))

    def ended(self, engine: Engine) -> None:
        """The engine is gone, or about to go: so is its front."""
        for link in self._links.values():
            link.ended(engine)

    def note(self) -> None:
        """Keep what has crossed emulated links so far, this machine's earlier lives included, for who reports it."""
        moved = [link.moved for link in self._links.values()]
        up, down = sum(one.up_nbytes for one in moved), sum(one.down_nbytes for one in moved)
        if (up, down) == self._noted:
            return
        fresh = self._file.with_suffix(".new")
        with contextlib.suppress(OSError):  # a full disk costs a figure, not the node
            fresh.write_text(json.dumps({"up_nbytes": up + self._before[0], "down_nbytes": down + self._before[1]}))
            fresh.replace(self._file)
            self._noted = up, down

    def _made(self, network: Network) -> ShapedLink | None:
        if not network.shaped or not (self._trains or network.machines == "all"):
            return None
        key = repr(network)
        if key not in self._links:
            link = self._links[key] = ShapedLink(network, self._machine)
            if self._tasks is not None:
                self._tasks.create_task(link.run())
        return self._links[key]


def read_moved(room: Path) -> tuple[int, int]:
    """Bytes that crossed the emulated link of the node that lives there: from it, and to it. Zeros where none did."""
    try:
        kept = json.loads((room / MOVED).read_text())
        return int(kept["up_nbytes"]), int(kept["down_nbytes"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0, 0
