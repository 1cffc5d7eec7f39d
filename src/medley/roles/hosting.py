"""One serving as the coordinator sees it: which machines serve, whose engine is up, who admits whom.

Its front is told of a machine once every stage admits its key and it admits theirs, and at once when it is gone. Lists
of keys are numbered as for training; a *generation* is one engine's life by our word, so a suspect gets a new one.
Nothing is persisted: a serving lives while its front asks, and after a restart its stages say that it was there; it
waits for its front as long as for any silent one. What is computed where is the front's business.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from medley.policies.scheduling.view import JobFacts
from medley.protocol.effects import Effect, Explain, Send
from medley.protocol.hosting import BeginServing, ReleaseMachines, ServingSpec, SuspectStage
from medley.protocol.ids import NS_PER_S, Generation, JobId, NodeId
from medley.protocol.messages import (
    Address,
    AssignStage,
    EngineDown,
    EngineUp,
    FromNode,
    Leave,
    Peers,
    PeersSet,
    ShardStatus,
    ToNode,
)
from medley.protocol.stages.words import HOPS_MAX, STAGE
from medley.roles.context import NodeView, Shared

FRONT_PATIENCE_NS = 15 * NS_PER_S  # a front that asks for nothing for so long is gone
LEAVING_NS = 10 * NS_PER_S  # in which a front may move away from a machine that the scheduler wants back
GONE_MAX = 256  # departures that are remembered for a front that asks late
AT_ONCE = 16  # stages whose lists are sent at every change; more hear of changes once a tick
FUTILE = 5  # engines of one machine that end one after the other before it is given back
GIB = 1 << 30


@dataclass(slots=True)
class StageView:
    """One machine's stage, in the generation that it was told."""

    node: NodeId
    generation: Generation
    address: Address | None = None  # of its engine, while that is up
    number: int = 0  # of the first list that has its key
    known: int = -1  # the newest list that it admits
    since: int = 0  # the news that it may be used; 0: it may not
    leaving: str = ""  # why it is given back soon
    leaving_ns: int = 0
    deaths: int = 0  # of engines that never came to be used


@dataclass(frozen=True, slots=True)
class Departure:
    """The news that a machine may be used no more."""

    number: int
    node: NodeId
    reason: str


@dataclass(slots=True)
class Hosting:
    """`front` is None while only its stages speak of it. `number` counts news."""

    job: JobId
    pool: dict[NodeId, NodeView]
    shared: Shared
    heard_ns: int
    since_ns: int
    spec: ServingSpec = field(default_factory=ServingSpec)
    front: Address | None = None
    submitted_ns: int = 0
    allotted: set[NodeId] = field(default_factory=set)  # by the scheduler
    stages: dict[NodeId, StageView] = field(default_factory=dict)
    released: frozenset[NodeId] = frozenset()
    unable: dict[tuple[NodeId, str], str] = field(default_factory=dict)  # (node, boot), and why
    generation: Generation = 0  # the newest of any stage
    number: int = 0
    gone: deque[Departure] = field(default_factory=lambda: deque(maxlen=GONE_MAX))
    ended: str = ""
    peers_due: bool = False
    out: list[Effect] = field(default_factory=list)

    # -- the front --------------------------------------------------------------------------------------------

    def begin(self, event: BeginServing, now_ns: int) -> None:
        """A front wants machines, or has come back for those that it had."""
        self.heard_ns = now_ns
        if self.front == event.front and self.spec == event.spec:
            return
        self.submitted_ns = self.submitted_ns or event.wall_ns
        again = " again" if self.stages else ""
        self.front, self.spec = event.front, event.spec
        self.explain(self.job, f"a front end at {event.front.endpoint} serves '{event.spec.name}'{again}")
        self.peers_due = self.shared.changed = True
        self._news()

    def suspect(self, event: SuspectStage) -> None:
        """End that engine, wherever it hangs, and have a fresh one."""
        stage = self.stages.get(event.node)
        if stage is None or (event.since and event.since != stage.since):
            return
        self._down(stage, f"suspected: {event.reason}")
        self.generation += 1
        stage.generation = self.generation
        self.send(stage.node, AssignStage(self.job, stage.generation, self.spec.threads))

    def release(self, event: ReleaseMachines) -> None:
        self.released = event.nodes
        self.shared.changed = True
        for node in sorted(event.nodes.intersection(self.stages)):
            self._dismiss(node, "its front end has no use for it")
        for node in sorted(self.allotted - self.stages.keys() - event.nodes):
            self._assign(node)

    def end(self, reason: str) -> None:
        for node in sorted(self.stages):
            self._dismiss(node, reason)
        self.ended = reason
        self.explain(self.job, f"ended: {reason}")
        self._news()

    # -- the scheduler ----------------------------------------------------------------------------------------

    def facts(self) -> JobFacts:
        """A serving needs a machine to begin, no parameters' place, and takes whatever it is given."""
        own = self.spec.schedule
        most = own.workers_max or HOPS_MAX
        return JobFacts(
            self.job,
            self.submitted_ns,
            self.since_ns,
            begun=bool(self.allotted),
            priority=own.priority,
            weight=own.weight,
            queue=own.queue,
            workers_min=own.workers_min,
            workers_max=most if self.front is not None else max(1, len(self.allotted)),
            memory_bytes=int(own.memory_gib * GIB),
            replicas=0,
            preemptible=own.preemptible,
            local=frozenset(self.allotted),
            unfit=self._unfit(),
        )

    def _unfit(self) -> frozenset[NodeId]:
        unable = {node for node, boot in self.unable if node in self.pool and self.pool[node].boot == boot}
        if self.front is None:
            unable |= self.pool.keys() - self.allotted
        elif self.spec.machines:
            unable |= self.pool.keys() - set(self.spec.machines)
        return frozenset(unable | self.released)

    def allot(self, nodes: set[NodeId], reasons: dict[NodeId, str], now_ns: int) -> None:
        """These machines serve from now on; others have a moment to be left."""
        if bool(nodes) != bool(self.allotted):
            self.since_ns = now_ns
        gone, self.allotted = self.allotted - nodes, set(nodes)
        for node in sorted(nodes - self.released):
            stage = self.stages.get(node)
            if stage is None:
                self._assign(node)
            elif stage.leaving:
                stage.leaving = ""
                self._news()
        for node in sorted(gone & self.stages.keys()):
            self._begin_leaving(self.stages[node], reasons.get(node, "the scheduler gives it to others"), now_ns)

    def _assign(self, node: NodeId) -> None:
        self.generation += 1
        self.stages[node] = StageView(node, self.generation)
        self.send(node, AssignStage(self.job, self.generation, self.spec.threads))

    def _begin_leaving(self, stage: StageView, reason: str, now_ns: int) -> None:
        if not stage.since or self.front is None:
            self._dismiss(stage.node, reason)
            return
        stage.leaving, stage.leaving_ns = reason, now_ns
        self.explain(self.job, f"{stage.node} is to be left within {LEAVING_NS // NS_PER_S} s: {reason}")
        self._news()

    def _dismiss(self, node: NodeId, reason: str) -> None:
        stage = self.stages.pop(node)
        self.send(node, Leave(self.job, stage.generation, STAGE, reason))
        self._down(stage, reason)

    # -- machines ---------------------------------------------------------------------------------------------

    def adopt(self, node: NodeId, status: ShardStatus) -> None:
        """After a restart: it says that it serves here."""
        self.generation = max(self.generation, status.generation)
        self.stages[node] = StageView(node, status.generation)
        self.allotted.add(node)

    def hello(self, node: NodeId, status: ShardStatus | None) -> None:
        """A stream begins: whatever was said on the one before may be lost."""
        stage = self.stages[node]
        if status is not None:
            self.generation = max(self.generation, status.generation)
            stage.generation = max(stage.generation, status.generation)
        self.send(node, AssignStage(self.job, stage.generation, self.spec.threads))

    def lost(self, node: NodeId) -> None:
        self._down(self.stages[node], "its connection to the coordinator ended")

    def heard(self, node: NodeId, message: FromNode) -> None:
        """One of its stages speaks."""
        stage = self.stages[node]
        match message:
            case EngineUp(_, generation, _, address) if generation == stage.generation:
                self._up(stage, address)
            case EngineDown(_, generation, _, reason) if generation == stage.generation:
                self._died(stage, reason)
            case PeersSet(_, generation, _, number) if generation == stage.generation:
                stage.known = max(stage.known, number)
                self._admit()
            case _:
                pass

    def _up(self, stage: StageView, address: Address) -> None:
        if stage.address == address:
            return  # it only introduces itself again
        self._down(stage, "its engine is a new one")
        stage.address = address
        self.peers_due = True

    def _died(self, stage: StageView, reason: str) -> None:
        stage.deaths += 1
        self._down(stage, f"its engine ended: {reason}")
        if stage.deaths >= FUTILE:
            self.unable[stage.node, self.pool[stage.node].boot] = reason
            self.explain(self.job, f"{stage.node} cannot serve: its engine ended {FUTILE} times in a row: {reason}")
            self.shared.changed = True

    def _down(self, stage: StageView, reason: str) -> None:
        """Its key is withdrawn, and the front hears of it."""
        self.peers_due |= stage.address is not None
        stage.address, stage.number, stage.known = None, 0, -1
        if stage.since:
            stage.since = 0
            self._news()
            self.gone.append(Departure(self.number, stage.node, reason))
            self.explain(self.job, f"{stage.node} is gone: {reason}")

    # -- who admits whom --------------------------------------------------------------------------------------

    def _admit(self) -> None:
        """Machines that everybody admits may be used. They admit all who are used: their list has these keys too."""
        up = [stage for stage in self.stages.values() if stage.address is not None]
        least_known = min((stage.known for stage in up), default=-1)
        for stage in up:
            if not stage.since and 0 < stage.number <= least_known:
                self._news()
                stage.since, stage.deaths = self.number, 0
                self.explain(self.job, f"{stage.node} serves")

    def tell_peers(self) -> None:
        """The newest list, to everybody whose engine is up."""
        self.peers_due = False
        if self.front is None:
            return
        up = [stage for stage in self.stages.values() if stage.address is not None]
        number = self.shared.lists.next()
        keys = {self.front.key, *(stage.address.key for stage in up if stage.address is not None)} - {""}
        for stage in up:
            stage.number = stage.number or number
            peers = Peers(self.job, stage.generation, STAGE, number, tuple(sorted(keys)), self.front)
            self.send(stage.node, peers)
        self._admit()  # who is left may have waited for one that is gone

    # -- time and effects -------------------------------------------------------------------------------------

    def tick(self, now_ns: int) -> None:
        for stage in list(self.stages.values()):
            if stage.leaving and now_ns - stage.leaving_ns > LEAVING_NS:
                self._dismiss(stage.node, stage.leaving)
        if self.peers_due:
            self.tell_peers()
        if now_ns - self.heard_ns > FRONT_PATIENCE_NS:
            self.end(f"its front end asked for nothing for {FRONT_PATIENCE_NS // NS_PER_S} s")

    def take(self) -> list[Effect]:
        if self.peers_due and len(self.stages) <= AT_ONCE and not self.ended:
            self.tell_peers()
        out, self.out = self.out, []
        return out

    def send(self, node: NodeId, message: ToNode) -> None:
        if (view := self.pool.get(node)) is not None and view.connected:
            self.out.append(Send(node, message))

    def explain(self, subject: str, text: str) -> None:
        self.out.append(Explain(subject, text))

    def _news(self) -> None:
        self.number = self.shared.lists.next()
