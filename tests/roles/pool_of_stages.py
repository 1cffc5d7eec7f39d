"""A coordinator and machines that serve, without time or wires: real roles, engines that are told what to do."""

from __future__ import annotations

from dataclasses import dataclass, field

from medley.protocol.effects import Effect, Explain, Report, Run, Send, StopEngine
from medley.protocol.engine import EngineExited, Opened, OpenStage, PeersKnown, SetPeers
from medley.protocol.events import CoordinatorEvent, EngineSaid, Heard, Lost, NodeEvent, Tick, Told
from medley.protocol.hosting import BeginServing, FrontAsks, ServingSpec
from medley.protocol.ids import NS_PER_S, NodeId
from medley.protocol.messages import (
    Address,
    AssignStage,
    AssignWorker,
    Capability,
    Heartbeat,
    Hello,
    Leave,
    ToNode,
    Welcome,
)
from medley.protocol.spec import Schedule
from medley.protocol.stages.words import STAGE
from medley.roles.allotment import PoolOptions
from medley.roles.coordinator import Coordinator
from medley.roles.hosting import Hosting
from medley.roles.stage_host import StageHost

JOB = "chat-1"
FRONT = Address("tcp://front:1", "front-key")
CAPABILITY = Capability(2, 1 << 33, "Linux", True, True)


@dataclass
class Machine:
    """A node with at most one stage; its engine answers at once unless it is `slow` to open or `deaf` to lists."""

    name: NodeId
    connected: bool = False
    role: StageHost | None = None
    lives: int = 0
    slow: bool = False
    deaf: bool = False
    admitted: tuple[str, ...] = ()
    unheard: list[SetPeers] = field(default_factory=list)  # lists that it was deaf to
    engines: list[int] = field(default_factory=list)  # generations, in the order of their engines
    told: list[ToNode] = field(default_factory=list)


class PoolOfStages:
    """`now_ns` stands still unless `wait` is called. `said`: every sentence, in order."""

    def __init__(self, *names: NodeId, scheduler: str = "fifo", term: int = 1) -> None:
        self.options = PoolOptions(scheduler)
        self.coordinator = Coordinator(term, self.options)
        self.now_ns = NS_PER_S
        self.said: list[tuple[str, str]] = []
        self.machines: dict[NodeId, Machine] = {}
        for name in names:
            self.join(name)

    @property
    def hosting(self) -> Hosting:
        return self.coordinator.servings.live[JOB]

    @property
    def usable(self) -> list[NodeId]:
        """What the front would hear."""
        return sorted(stage.node for stage in self.hosting.stages.values() if stage.since)

    @property
    def gone(self) -> list[tuple[NodeId, str]]:
        return [(departure.node, departure.reason) for departure in self.hosting.gone]

    # -- what happens -------------------------------------------------------------------------------------------

    def begin(self, *machines: NodeId, priority: int = 0, most: int = 0, front: Address = FRONT) -> None:
        spec = ServingSpec("chat", machines, 0, Schedule(priority=priority, workers_max=most))
        self.say(BeginServing(JOB, front, spec, 1))

    def join(self, name: NodeId, boot: str = "b") -> Machine:
        """It says Hello, for the first time or again."""
        machine = self.machines.setdefault(name, Machine(name))
        machine.connected = True
        shards = (machine.role.status(),) if machine.role is not None else ()
        self.say(Heard(name, Hello(name, boot, CAPABILITY, (), shards)))
        return machine

    def cut(self, name: NodeId, boot: str = "b") -> None:
        """Its stream ends; the machine lives."""
        self.machines[name].connected = False
        self.say(Lost(name, boot))

    def crash(self, name: NodeId) -> None:
        self.machines[name].role = None
        self.cut(name)

    def wait(self, seconds: float, *, asking: bool = True) -> None:
        """Ticks and heartbeats, four a second."""
        for _ in range(int(seconds * 4)):
            self.now_ns += NS_PER_S // 4
            for machine in self.machines.values():
                if machine.connected:
                    shards = (machine.role.status(),) if machine.role is not None else ()
                    self.say(Heard(machine.name, Heartbeat(machine.name, (), shards)))
            self.say(Tick(self.now_ns))
            if asking:
                self.say(FrontAsks(JOB))

    def opens(self, name: NodeId) -> None:
        """An engine that was slow listens now."""
        machine = self.machines[name]
        machine.slow = False
        self._open(machine)

    def hears(self, name: NodeId) -> None:
        """Lists that it was deaf to are answered now, in order."""
        machine = self.machines[name]
        machine.deaf, commands = False, machine.unheard
        machine.unheard = []
        for command in commands:
            self._admit(machine, command)

    def dies(self, name: NodeId, reason: str = "killed") -> None:
        self._role_hears(self.machines[name], EngineSaid(EngineExited(reason, False)))

    def restart(self, connected: list[NodeId] | None = None) -> None:
        """Another coordinator, which knows nothing of servings; every machine comes back, or these."""
        self.coordinator = Coordinator(self.coordinator.term + 1, self.options)
        for name in list(self.machines) if connected is None else connected:
            self.join(name)

    # -- who does what ------------------------------------------------------------------------------------------

    def say(self, event: CoordinatorEvent) -> list[Effect]:
        effects = self.coordinator.handle(event, self.now_ns)
        for effect in effects:
            match effect:
                case Send(node, message):
                    machine = self.machines[node]
                    machine.told.append(message)
                    if machine.connected:
                        self._told(machine, message)
                case Explain(subject, text):
                    self.said.append((subject, text))
        return effects

    def _told(self, machine: Machine, message: ToNode) -> None:
        match message:
            case AssignStage() if machine.role is None:
                machine.role = StageHost(machine.name, message)
                self._do(machine, machine.role.start())
            case Leave(_, _, shard):
                if shard == STAGE:
                    machine.role = None
            case AssignWorker():
                pass
            case Welcome() | _:
                self._role_hears(machine, Told(message))

    def _role_hears(self, machine: Machine, event: NodeEvent) -> None:
        if machine.role is not None:
            self._do(machine, machine.role.handle(event, self.now_ns))

    def _do(self, machine: Machine, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Report(message):
                    if machine.connected:
                        self.say(Heard(machine.name, message))
                case Run(OpenStage(_, generation)):
                    machine.engines.append(generation)
                    machine.admitted, machine.unheard = (), []
                    if not machine.slow:
                        self._open(machine)
                case Run(SetPeers() as command) if machine.deaf:
                    machine.unheard.append(command)
                case Run(SetPeers() as command):
                    self._admit(machine, command)
                case StopEngine():
                    self._role_hears(machine, EngineSaid(EngineExited("killed", False)))

    def _admit(self, machine: Machine, command: SetPeers) -> None:
        machine.admitted = command.keys
        self._role_hears(machine, EngineSaid(PeersKnown(command.number)))

    def _open(self, machine: Machine) -> None:
        machine.lives += 1
        address = Address(f"tcp://{machine.name}:{machine.lives}", f"{machine.name}-{machine.lives}")
        self._role_hears(machine, EngineSaid(Opened(address)))
