"""A front, the machines that serve, and the links between them; what the coordinator would tell is modelled here.

A machine's engine is started again when it died, as a new process with a new address; so it is when it is suspected.
The front hears of that late, and of a machine that stands still or is cut off only after a while.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from medley.protocol.ids import NodeId
from medley.protocol.messages import Address
from medley.protocol.stages.events import (
    Compute,
    Drain,
    Explain,
    FrontEffect,
    FrontEvent,
    MachineDown,
    MachineUp,
    Reject,
    StageEffect,
    StageEvent,
)
from medley.runtimes.simulated.kernel import MS, Kernel, S
from medley.runtimes.simulated.network import EVERYONE, Network
from medley.runtimes.simulated.serving.front import FrontProcess
from medley.runtimes.simulated.serving.phases import phases_of, request_phase
from medley.runtimes.simulated.serving.setup import FRONT, Host, ServingSetup
from medley.runtimes.simulated.serving.stage import StageProcess
from medley.runtimes.simulated.serving.watch import ServingWatcher
from medley.runtimes.simulated.serving.wires import Wires
from medley.runtimes.simulated.trace import Trace

NEWS_NS = 30 * MS  # from a machine by way of the coordinator to the front
EXIT_NS = 80 * MS  # until a parent has noticed that its engine died
SILENT_NS = 5 * S  # of a machine, until the coordinator takes it for gone
REMARKS_MAX = 200


class Machine:
    """One machine: whether it is there, and its engine's process, if one runs."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.there = False
        self.process: StageProcess | None = None
        self.paused_ns = 0
        self.slowness = 1.0
        self.known_up: Address | None = None  # what the front was told last
        self.starts = 0


class ServingWorld:
    """One serving, from a setup and a seed."""

    def __init__(
        self,
        setup: ServingSetup,
        *,
        seed: int,
        trace: Path | Trace | None = None,
        watchers: Sequence[ServingWatcher] = (),
    ) -> None:
        self.setup = setup
        self.kernel = Kernel(seed)
        self.network = Network(self.kernel)
        self.trace = trace if isinstance(trace, Trace) else Trace(trace, title=f"serving seed {seed}")
        self.watchers = tuple(watchers)
        self.wires = Wires(self)
        self.strike: Callable[[str, str], bool] | None = None
        self.struck: Counter[tuple[str, str]] = Counter()
        self.remarks: deque[tuple[str, str]] = deque(maxlen=REMARKS_MAX)
        self.machines: dict[NodeId, Machine] = {}
        self._addresses = 0
        self._told_ns = 0
        self._jitter = self.kernel.random("jitter").random
        self.network.add(FRONT, setup.front)
        self.front = FrontProcess(self, setup, self._address(FRONT))

    # -- running ------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        self.front.start()
        for host in self.setup.hosts:
            self.network.add(host.name, host.conditions)
            self.machines[host.name] = Machine(host)
            self.kernel.at(host.joins_ns, self.join, host.name)
        for client in self.setup.clients:
            self.kernel.at(client.at_ns, self.front.ask, client)

    def run(self, until_ns: int, stop: Callable[[], bool] | None = None) -> bool:
        return self.kernel.run(until_ns, stop)

    def answered(self) -> bool:
        return self.front.ended == len(self.setup.clients)

    # -- machines -----------------------------------------------------------------------------------------------------

    def join(self, name: NodeId) -> None:
        machine = self.machines[name]
        if not machine.there:
            machine.there = True
            self.note(name, "joins", "the machine is there")
            self.kernel.after(self.jitter(self.setup.boot_ns), self._boot, machine, machine.starts)

    def _boot(self, machine: Machine, start: int) -> None:
        """A process listens; the coordinator hears of it, and everybody admits its key."""
        if not machine.there or machine.process is not None or start != machine.starts:
            return
        machine.starts += 1
        process = StageProcess(self, machine.host, self._address(machine.host.name))
        process.slowness = machine.slowness
        machine.process = process
        if machine.paused_ns > self.kernel.now:
            process.pause(machine.paused_ns)
        self.note(machine.host.name, "started", process.address.endpoint)
        self.kernel.after(NEWS_NS, self._say_up, machine, process)

    def crash_engine(self, name: NodeId, reason: str) -> None:
        """Its process ends; the machine's own parent notices, tells, and starts another."""
        machine = self.machines[name]
        if machine.process is None:
            return
        self.note(name, "engine-died", reason)
        address = machine.process.address
        machine.process.die()
        machine.process = None
        wait_ns = max(self.kernel.now, machine.paused_ns) - self.kernel.now + self.jitter(EXIT_NS)
        self.kernel.after(wait_ns, self._say_down, machine, address, reason)
        self.kernel.after(wait_ns + self.jitter(self.setup.boot_ns), self._boot, machine, machine.starts)

    def crash(self, name: NodeId, away_ns: int) -> None:
        """The whole machine dies; it is back after that time, or never (0). Its stream ends with it."""
        machine = self.machines[name]
        if not machine.there:
            return
        self.note(name, "died", "the machine")
        machine.there = False
        machine.starts += 1
        if machine.process is not None:
            self.kernel.after(self.jitter(S), self._say_down, machine, machine.process.address, "its connection ended")
            machine.process.die()
            machine.process = None
        if away_ns:
            self.kernel.after(away_ns, self.join, name)

    def pause(self, name: NodeId, for_ns: int) -> None:
        machine = self.machines[name]
        machine.paused_ns = max(machine.paused_ns, self.kernel.now + for_ns)
        self.note(name, "paused", f"for {for_ns / S:.3f} s")
        if machine.process is not None:
            machine.process.pause(machine.paused_ns)
        self.kernel.after(SILENT_NS, self._look, machine)
        self.kernel.at(machine.paused_ns + NEWS_NS, self._look, machine)

    def pause_engine(self, name: NodeId, for_ns: int) -> None:
        """Only the engine's process stands still: nobody but its peers can notice."""
        process = self.machines[name].process
        if process is not None:
            self.note(name, "engine-paused", f"for {for_ns / S:.3f} s")
            process.pause(self.kernel.now + for_ns)

    def resume(self, name: NodeId) -> None:
        """SIGCONT, for all that stands still there."""
        machine = self.machines[name]
        machine.paused_ns = 0
        if machine.process is not None:
            machine.process.resume()
        self._look_later()

    def slow(self, name: NodeId, factor: float) -> None:
        machine = self.machines[name]
        machine.slowness = factor
        if machine.process is not None:
            machine.process.slowness = factor

    def cut(self, source: NodeId, target: NodeId) -> None:
        self.note(source, "cut", f"to {target}")
        self.network.block(source, target)
        self._look_later()

    def mend(self, source: NodeId, target: NodeId) -> None:
        self.network.unblock(source, target)
        self._look_later()

    def _look_later(self) -> None:
        for machine in self.machines.values():
            self.kernel.after(NEWS_NS, self._look, machine)
            self.kernel.after(SILENT_NS, self._look, machine)

    def drain(self, name: NodeId) -> None:
        self.note(name, "drained", "by a person")
        self.front.handle(Drain(name))

    # -- what the coordinator tells the front -------------------------------------------------------------------------

    def suspected(self, node: NodeId, reason: str) -> None:
        self.note(node, "suspected", reason)
        self.kernel.after(self.jitter(NEWS_NS), self._restart, node)

    def _restart(self, node: NodeId) -> None:
        """The parent ends the process, if it can be told."""
        machine = self.machines[node]
        if machine.paused_ns > self.kernel.now or self.network.is_blocked(FRONT, node):
            self.kernel.after(200 * MS, self._restart, node)
        elif machine.process is not None:
            self.crash_engine(node, "it was suspected")

    def _look(self, machine: Machine) -> None:
        """The coordinator's heartbeats: who is silent is gone, who speaks again is back."""
        name = machine.host.name
        silent = machine.paused_ns > self.kernel.now or self.network.blocked.issuperset({(name, EVERYONE)})
        if silent:
            self._say_down(machine, machine.known_up, "no heartbeat for 5 s")
        elif machine.process is not None:
            self._say_up(machine, machine.process)

    def _say_up(self, machine: Machine, process: StageProcess) -> None:
        if machine.process is not process or machine.known_up == process.address:
            return
        machine.known_up = process.address
        self._tell(MachineUp(machine.host.name, process.address))

    def _say_down(self, machine: Machine, address: Address | None, reason: str) -> None:
        """Of the process that listened there; a newer one may be known already."""
        if address is not None and machine.known_up == address:
            machine.known_up = None
            self._tell(MachineDown(machine.host.name, reason))

    def _tell(self, news: FrontEvent) -> None:
        """In order: the front's questions for news wait for one answer after the other."""
        self._told_ns = max(self._told_ns + 1, self.kernel.now + self.jitter(NEWS_NS))
        self.kernel.at(self._told_ns, self.front.handle, news)

    # -- chance -------------------------------------------------------------------------------------------------------

    def jitter(self, mean_ns: int) -> int:
        return int(mean_ns * (0.5 + self._jitter()))

    def late_ns(self) -> int:
        random = self.kernel.random("late")
        return int(random.choice((MS, 20 * MS, 300 * MS, 2 * S)) * random.random())

    def chance(self, fault: str, operation: str) -> bool:
        if self.strike is None or not self.strike(fault, operation):
            return False
        self.met(fault, operation)
        return True

    def met(self, fault: str, operation: str) -> None:
        self.struck[fault, operation] += 1
        self.note("storm", "fault", f"{fault}: {operation}")

    # -- what is told about it ----------------------------------------------------------------------------------------

    def phases(self) -> list[str]:
        return phases_of(self)

    def phase_of(self, request: int) -> str:
        return request_phase(self, request)

    def note(self, who: str, kind: str, what: str) -> None:
        self.trace.note(self.kernel.now, self.kernel.cause, who, kind, what)

    def remark(self, who: str, effect: Explain | Reject) -> None:
        self.remarks.append((who, f"{effect.subject}: {effect.text}" if isinstance(effect, Explain) else effect.reason))

    def handled(self, who: str, event: Any, effects: Sequence[Any]) -> None:
        self.kernel.cause = self.trace.handled(self.kernel.now, who, event, len(effects))
        self.trace.line(self.kernel.now, self.kernel.cause, who, "", event, effects)

    def watch_front(self, event: FrontEvent, effects: Sequence[FrontEffect]) -> None:
        for watcher in self.watchers:
            watcher.front(self, event, effects)

    def watch_stage(self, process: StageProcess, event: StageEvent, effects: Sequence[StageEffect]) -> None:
        for watcher in self.watchers:
            watcher.stage(self, process, event, effects)

    def watch_compute(self, process: StageProcess, effect: Compute) -> None:
        for watcher in self.watchers:
            watcher.compute(self, process, effect)

    def _address(self, name: NodeId) -> Address:
        self._addresses += 1
        return Address(f"sim://{name}#{self._addresses}", f"key{self._addresses}")
