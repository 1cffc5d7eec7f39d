"""A worker: leases in, updates out, one engine below it.

One lease at a time is pulled-and-computed; finished updates are pushed while the next lease computes. An update
stays `pending` until its outcome is known, and is pushed again whenever the routes change, which shards recognise.
Whatever a lost message said, the next `WorkerStatus` says again; whatever a dead engine held, its leases go back.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import isfinite
from typing import Literal, assert_never

from medley.protocol.effects import Effect, Explain, Report, Run, StopEngine
from medley.protocol.engine import (
    Abandon,
    Compute,
    Computed,
    DropCarry,
    EngineExited,
    Failed,
    Loaded,
    LoadWorker,
    Measure,
    Measured,
    Opened,
    OpenWorker,
    Prefetch,
    Progress,
    Pull,
    Pulled,
    Push,
    Pushed,
    ResetWorker,
    SetRoutes,
    Settle,
    WorkerReport,
)
from medley.protocol.events import EngineSaid, NodeEvent, Tick, Told
from medley.protocol.ids import Generation, LeaseId, NodeId, UpdateId, Version, update_id
from medley.protocol.messages import (
    Address,
    AssignWorker,
    Base,
    BaseHeld,
    BaseWanted,
    EngineDown,
    EngineUp,
    Evaluate,
    Evaluated,
    Lease,
    LeaseFailed,
    Leave,
    Outcome,
    Ready,
    Revoke,
    Route,
    Routes,
    ToWorker,
    UpdateReady,
    Welcome,
    WorkerStatus,
)
from medley.roles.engine_watch import EngineWatch
from medley.roles.patience import REPEAT_UPDATE_NS, Patience

EnginePhase = Literal["down", "opening", "opened", "loading", "ready"]
WorkPhase = Literal["idle", "wanting", "pulling", "computing", "measuring"]


@dataclass(slots=True)
class Pending:
    """A computed update whose outcome is not known."""

    report: UpdateReady
    patience: Patience


@dataclass(slots=True)
class Worker:
    """The worker role of one job on one node. `boot` makes its update ids unique: no two lives of it share one."""

    node: NodeId
    boot: str
    assignment: AssignWorker
    allow_code: bool = False
    engine: EnginePhase = "down"
    phase: WorkPhase = "idle"
    micro_batch: int = 0
    routes: tuple[Route, ...] = ()
    vault: Address | None = None
    leases: dict[LeaseId, Lease] = field(default_factory=dict)
    base: Base | None = None
    holds: Version = -1
    current: LeaseId = 0
    computing: UpdateId = ""
    pending: dict[UpdateId, Pending] = field(default_factory=dict)
    carried: tuple[LeaseId, ...] = ()  # leases of the carry that waits for the next update
    carried_base: Version = -1
    taken: tuple[LeaseId, ...] = ()  # leases of the carry inside the update that is being computed
    taken_base: Version = -1
    measure: Version = -1  # to be measured when there is time
    at_hand: Version = -1  # what is being pulled or measured; an answer about another version is an old one
    wish: Patience = field(default_factory=lambda: Patience(0))  # for a base, while `phase` is "wanting"
    watch: EngineWatch = field(default_factory=EngineWatch)
    updates: int = 0
    address: EngineUp | None = None
    said: WorkerStatus | None = None  # what it says of itself, for as long as that stays true

    @property
    def generation(self) -> Generation:
        return self.assignment.generation

    def start(self) -> list[Effect]:
        """Effects that begin this role's life."""
        self.engine = "opening"
        a = self.assignment
        return [Run(OpenWorker(a.job, a.generation, a.plan, a.threads, self.micro_batch, self.allow_code))]

    def status(self) -> WorkerStatus:
        """The same object until something changes: most heartbeats say what the last one said."""
        if self.said is None:
            self.said = self._status()
        return self.said

    def _status(self) -> WorkerStatus:
        sent = (lease for pending in self.pending.values() for lease in pending.report.leases)
        held = tuple(sorted({*self.leases, *self.carried, *self.taken, *sent}))
        return WorkerStatus(self.assignment.job, self.generation, held, tuple(self.pending), self.phase)

    def handle(self, event: NodeEvent, now_ns: int) -> list[Effect]:
        match event:
            case Tick():
                return self._repeat(now_ns)  # changes nothing that `status` tells
            case Told(message):
                effects = self._told(message, now_ns)  # type: ignore[arg-type]
            case EngineSaid(report):
                effects = self._engine_said(report, now_ns)  # type: ignore[arg-type]
            case _:
                assert_never(event)
        self.said = None
        return effects

    # -- the coordinator speaks -------------------------------------------------------------------------------

    def _told(self, message: ToWorker | Welcome, now_ns: int) -> list[Effect]:
        if isinstance(message, Welcome):
            return self._reintroduce(now_ns)
        if isinstance(message, AssignWorker):
            return self._assigned(message)
        if message.generation != self.generation:
            return []
        match message:
            case Routes():
                return self._routed(message)
            case Lease():
                return self._leased(message, now_ns)
            case Base():
                return self._based(message)
            case Outcome():
                return self._settled(message, now_ns)
            case Revoke():
                return self._revoked(message, now_ns)
            case Evaluate():
                self.measure = message.version
                return self._measure_if_possible()
            case Leave():
                return [StopEngine(message.reason)]
            case _:
                assert_never(message)

    def _reintroduce(self, now_ns: int) -> list[Effect]:
        """A (re)started coordinator is told everything it cannot know."""
        effects: list[Effect] = []
        if self.address is not None:
            effects.append(Report(replace(self.address, generation=self.generation)))
        if self.engine == "ready":
            effects.append(Report(Ready(self.assignment.job, self.generation, -1, self.holds)))
        for pending in self.pending.values():
            pending.patience = Patience(now_ns, REPEAT_UPDATE_NS)
            effects.append(Report(pending.report))
        if self.phase == "wanting":
            effects += self._want(now_ns)
        return effects

    def _assigned(self, message: AssignWorker) -> list[Effect]:
        if message.generation <= self.generation:
            return []
        self.assignment = message
        self._forget()
        effects: list[Effect] = []
        if self.engine in ("loading", "ready"):
            effects.append(Run(ResetWorker(message.generation)))
        if self.engine == "ready":
            effects.append(Report(Ready(message.job, message.generation, -1, -1)))
        if self.address is not None:
            self.address = replace(self.address, generation=message.generation)
            effects.append(Report(self.address))
        return effects

    def _routed(self, message: Routes) -> list[Effect]:
        changed = (message.routes, message.vault) != (self.routes, self.vault)
        self.routes, self.vault = message.routes, message.vault
        effects: list[Effect] = []
        if changed or self.engine == "opened":
            effects.append(Run(SetRoutes(self.generation, message.routes, message.vault)))
        if self.engine == "opened":
            self.engine = "loading"
            effects.append(Run(LoadWorker(self.generation)))
        elif changed:
            effects += [Run(Push(self.generation, update)) for update in self.pending]
        return effects

    def _leased(self, message: Lease, now_ns: int) -> list[Effect]:
        if message.lease in self.status().leases:
            return []
        self.leases[message.lease] = message
        effects: list[Effect] = [Run(Prefetch(message.lease, message.span, message.steps))]
        return effects + self._next(now_ns)

    def _based(self, message: Base) -> list[Effect]:
        if self.phase == "pulling" and self.base is not None and self.base.version == message.version:
            return []  # said twice; the version must stay pinned until it is here
        if self.phase != "wanting" or message.lease not in self.leases:
            return [Report(BaseHeld(message.job, self.generation, message.version))]
        self.base = message
        self.current = message.lease
        if self.holds == message.version:
            return [Report(BaseHeld(message.job, self.generation, message.version)), *self._begin()]
        self.phase, self.at_hand = "pulling", message.version
        return [Run(Pull(self.generation, message.version))]

    def _settled(self, message: Outcome, now_ns: int) -> list[Effect]:
        pending = self.pending.get(message.update)
        if pending is None:
            return []
        del self.pending[message.update]
        for lease in pending.report.leases:
            self.leases.pop(lease, None)
        verdict: Literal["committed", "carry", "drop"] = message.verdict
        if verdict == "carry" and not self.carried:
            self.carried, self.carried_base = pending.report.leases, pending.report.oldest_base
        elif verdict == "carry":
            verdict = "drop"  # one carry at a time; the next status says that these leases are not held
        return [Run(Settle(message.update, verdict)), *self._next(now_ns)]

    def _revoked(self, message: Revoke, now_ns: int) -> list[Effect]:
        gone = set(message.leases)
        effects: list[Effect] = []
        for lease in gone:
            self.leases.pop(lease, None)
        if gone & set(self.carried):
            self._drop_carry()
            effects.append(Run(DropCarry(self.generation)))
        for update, pending in list(self.pending.items()):
            if gone & set(pending.report.leases):
                del self.pending[update]
                effects.append(Run(Settle(update, "drop")))
        if self.current in gone or gone & set(self.taken):
            if self.phase == "computing":
                effects.append(Run(Abandon(self.computing)))
            self.current = 0  # what is being computed is thrown away when it arrives
            self.taken = ()
            self.watch.taken_back(now_ns)
            if self.phase == "wanting":
                self.phase = "idle"
        return effects + self._next(now_ns)

    # -- the engine speaks ------------------------------------------------------------------------------------

    def _engine_said(self, report: WorkerReport, now_ns: int) -> list[Effect]:
        match report:
            case Opened(address):
                self.engine = "opened"
                self.address = EngineUp(self.assignment.job, self.generation, -1, address)
                return [Report(self.address)]
            case Loaded():
                self.micro_batch = report.micro_batch or self.micro_batch
                return self._loaded(now_ns)
            case Pulled():
                return self._pulled(report, now_ns)
            case Computed():
                return self._computed(report, now_ns)
            case Measured():
                return self._measured(report, now_ns)
            case Progress(done):
                self.watch.says(done, self.phase == "computing", now_ns)
                return []
            case Pushed():
                return []
            case Failed():
                return self._failed(report, now_ns)
            case EngineExited():
                return self._exited(report)
            case _:
                assert_never(report)

    def _loaded(self, now_ns: int) -> list[Effect]:
        self.engine = "ready"
        effects: list[Effect] = [Report(Ready(self.assignment.job, self.generation, -1, -1))]
        return effects + self._next(now_ns)

    def _pulled(self, report: Pulled, now_ns: int) -> list[Effect]:
        if report.generation != self.generation:
            return []
        self.holds = report.version
        effects: list[Effect] = [Report(BaseHeld(self.assignment.job, self.generation, report.version))]
        if self.phase != "pulling" or report.version != self.at_hand:
            return effects
        if self.measure == report.version:
            self.phase = "measuring"
            return [*effects, Run(Measure(report.version))]
        return [*effects, *self._begin_or_next(now_ns)]

    def _begin_or_next(self, now_ns: int) -> list[Effect]:
        if self.base is not None and self.current in self.leases and self.base.version == self.holds:
            return self._begin()
        self.phase = "idle"
        return self._next(now_ns)

    def _begin(self) -> list[Effect]:
        assert self.base is not None
        lease = self.leases[self.current]
        self.updates += 1
        self.computing = update_id(self.node, self.boot, self.updates)
        self.phase = "computing"
        self.watch.begun()
        self.taken, self.taken_base = self.carried, self.carried_base
        self._drop_carry()
        carry = bool(self.taken)
        return [Run(Compute(self.computing, lease.span, lease.steps, self.base.version, self.base.lr, carry))]

    def _computed(self, report: Computed, now_ns: int) -> list[Effect]:
        if report.update != self.computing:
            return [Run(Settle(report.update, "drop"))]
        self.phase, self.computing = "idle", ""
        if self.base is None or self.current not in self.leases:
            return [Run(Settle(report.update, "drop")), *self._next(now_ns)]
        self.micro_batch = report.micro_batch
        said = self._ready_report(report)
        del self.leases[self.current]
        self.pending[report.update] = Pending(said, Patience(now_ns, REPEAT_UPDATE_NS))
        self.current, self.taken = 0, ()
        effects: list[Effect] = [Report(said), Run(Push(self.generation, report.update))]
        return effects + self._next(now_ns)

    def _ready_report(self, report: Computed) -> UpdateReady:
        assert self.base is not None
        base = self.base.version
        finite = report.finite and isfinite(report.loss_sum) and isfinite(report.residual_norm)
        return UpdateReady(
            self.assignment.job,
            self.generation,
            report.update,
            (self.current, *self.taken),
            base,
            self.taken_base if self.taken else base,
            report.weight,
            report.loss_sum if finite else 0.0,
            report.correct,
            report.samples,
            report.tokens,
            report.seconds,
            report.micro_batch,
            report.residual_norm if finite else 0.0,
            finite,
        )

    def _measured(self, report: Measured, now_ns: int) -> list[Effect]:
        if self.phase != "measuring" or report.version != self.at_hand:
            return []
        if self.measure == report.version:
            self.measure = -1
        return [self._evaluated(report), *self._begin_or_next(now_ns)]

    def _evaluated(self, report: Measured) -> Report:
        job = self.assignment.job
        if not (isfinite(report.loss) and isfinite(report.accuracy)):
            report = Measured(report.version, 0.0, 0, 0.0)  # no measurement: numbers on the wire are finite
        return Report(Evaluated(job, self.generation, report.version, report.loss, report.tokens, report.accuracy))

    def _pull_failed(self, report: Failed, now_ns: int) -> list[Effect]:
        """Try again a little later, with whatever version the coordinator then names."""
        effects: list[Effect] = [Explain(self.node, f"pull failed: {report.reason}")]
        if self.phase != "pulling" or report.subject != str(self.at_hand):
            return effects
        self.phase = "idle"
        self.base = None
        if report.subject == str(self.measure):
            effects.append(self._evaluated(Measured(self.measure, 0.0, 0, 0.0)))
            self.measure = -1
            return effects + self._next(now_ns)
        if self.current in self.leases:
            self.phase, self.wish = "wanting", Patience(now_ns)
            return effects
        return effects + self._next(now_ns)

    def _compute_failed(self, report: Failed, now_ns: int) -> list[Effect]:
        if report.subject != self.computing:
            return []
        self.phase, self.computing = "idle", ""
        if self.current not in self.leases:
            return self._next(now_ns)
        leases = (self.current, *self.taken)
        del self.leases[self.current]
        self.current, self.taken = 0, ()
        said = LeaseFailed(self.assignment.job, self.generation, leases, report.reason, report.fatal)
        return [Report(said), *self._next(now_ns)]

    def _failed(self, report: Failed, now_ns: int) -> list[Effect]:
        match report.what:
            case "pull":
                return self._pull_failed(report, now_ns)
            case "push":
                if (pending := self.pending.get(report.subject)) is not None:
                    pending.patience = Patience(now_ns)
                return [Explain(self.node, f"push of {report.subject} failed: {report.reason}")]
            case "compute":
                return self._compute_failed(report, now_ns)
            case "measure" if report.subject == str(self.at_hand):
                nothing = Measured(self.at_hand, 0.0, 0, 0.0)
                return [Explain(self.node, f"measuring failed: {report.reason}"), *self._measured(nothing, now_ns)]
            case "load":
                said = LeaseFailed(self.assignment.job, self.generation, (), report.reason, report.fatal)
                return [Report(said), StopEngine(report.reason)]
            case _:
                return [Explain(self.node, f"{report.what} failed: {report.reason}")]

    def _exited(self, report: EngineExited) -> list[Effect]:
        """The child is gone, and with it every tensor: leases go back, a fresh engine starts."""
        if report.memory:
            self.micro_batch = max(1, self.micro_batch // 2) if self.micro_batch else 1
        self._forget()
        self.address = None
        down = EngineDown(self.assignment.job, self.generation, -1, report.reason, report.memory)
        why = f"engine ended: {report.reason}"
        if report.memory:
            why += f"; it starts again with micro-batches of {self.micro_batch}"
        return [Report(down), Explain(self.node, why), *self.start()]

    # -- what to do next --------------------------------------------------------------------------------------

    def _next(self, now_ns: int) -> list[Effect]:
        """Ask for parameters if there is a lease to begin and nothing else to do."""
        if self.engine != "ready" or self.phase != "idle":
            return []
        if self.measure >= 0:
            return self._measure_if_possible()
        if not self.leases:
            return []
        self.current = min(self.leases)
        self.phase = "wanting"
        return self._want(now_ns)

    def _want(self, now_ns: int) -> list[Effect]:
        self.wish = Patience(now_ns)
        return [self._wanted()]

    def _wanted(self) -> Report:
        return Report(BaseWanted(self.assignment.job, self.generation, self.current))

    def _measure_if_possible(self) -> list[Effect]:
        if self.engine != "ready" or self.phase not in ("idle", "wanting"):
            return []
        self.base, self.at_hand = None, self.measure
        if self.holds == self.measure:
            self.phase = "measuring"
            return [Run(Measure(self.measure))]
        self.phase = "pulling"
        return [Run(Pull(self.generation, self.measure))]

    def _repeat(self, now_ns: int) -> list[Effect]:
        """Say again what nobody answered; end an engine that will never answer."""
        effects: list[Effect] = []
        if self.watch.hangs(self.phase, now_ns):
            return [StopEngine(f"it hangs in {self.phase}")]
        if self.phase == "wanting" and self.wish.is_over(now_ns):
            effects.append(self._wanted())
        for update, pending in self.pending.items():
            if pending.patience.is_over(now_ns):
                effects += [Report(pending.report), Run(Push(self.generation, update))]
        return effects

    def _forget(self) -> None:
        self.phase = "idle"
        self.leases.clear()
        self.pending.clear()
        self._drop_carry()
        self.taken = ()
        self.base = None
        self.holds = -1
        self.current = 0
        self.computing = ""
        self.measure = -1
        self.watch = EngineWatch()

    def _drop_carry(self) -> None:
        self.carried = ()
        self.carried_base = -1
