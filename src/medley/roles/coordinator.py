"""The coordinator: who is in the pool, which machines each job and each serving has, and every run's side of the talk.

Which machines a job may use its scheduler decides (`allotment`); a run sees only those. The coordinator is the only
writer of the log. Its state is the fold of that log (`restore`), plus what nodes say of themselves when they
(re)connect. An event touches the runs that it concerns; a tick touches those that were not touched for longest.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import assert_never

from medley.policies.scheduling.view import Allotment
from medley.protocol.codec import parse
from medley.protocol.effects import Close, Effect, Explain, Persist, Reject, Run, Send
from medley.protocol.engine import (
    EngineExited,
    Exported,
    Failed,
    JobPrepared,
    Opened,
    PeersKnown,
    Report,
    Sealed,
    SetPeers,
)
from medley.protocol.events import (
    Cancel,
    CoordinatorEvent,
    EngineSaid,
    Expel,
    Heard,
    Lost,
    Resume,
    Stop,
    Submit,
    Tick,
)
from medley.protocol.hosting import BeginServing, EndServing, FrontAsks, ReleaseMachines, SuspectStage
from medley.protocol.ids import NS_PER_MS, NS_PER_S, JobId, NodeId, Term
from medley.protocol.messages import (
    Address,
    EngineDown,
    EngineUp,
    FromNode,
    Heartbeat,
    Hello,
    PeersSet,
    Refused,
    Welcome,
)
from medley.protocol.records import (
    JobRecord,
    NodeRevoked,
    PoolRecord,
    Snapshot,
    Submitted,
    TokenCreated,
    TokenRedeemed,
)
from medley.protocol.stages.words import STAGE
from medley.roles import recovery
from medley.roles.admission import Admission, newest_list_only
from medley.roles.allotment import Asking, PoolOptions
from medley.roles.context import NodeView, Shared, stream
from medley.roles.presence import Presence
from medley.roles.returning import Returning
from medley.roles.run import Run as TrainingRun
from medley.roles.servings import Servings
from medley.roles.state import RunState

ROTA = 32  # runs that a tick advances at least, and one in fifty of many


class Coordinator:
    """Pure: feed it events, execute its effects."""

    def __init__(self, term: Term, options: PoolOptions | None = None) -> None:
        self.term = term
        self.options = options or PoolOptions()
        self.pool: dict[NodeId, NodeView] = {}
        self.runs: dict[JobId, TrainingRun] = {}  # all that were ever submitted
        self.working: dict[JobId, TrainingRun] = {}  # begun and not over; those advanced longest ago first
        self.shared = Shared()
        self.shared.lists.last = term << 32  # an answer to an earlier coordinator is not taken for one to this one
        self.asking = Asking(self.options, self.pool, self.shared)
        self.admission = Admission(self.shared.lists)
        self.revoked: dict[NodeId, str] = {}
        self.presence = Presence(self.pool, self.options.heartbeat_ms * NS_PER_MS)
        self.why: dict[str, str] = {}  # the scheduler's newest sentence about a job or a machine
        self.stopping = False
        self.vault = Address("", "")
        self.wall_ns = 0
        self.returning = Returning()
        self.servings = Servings(self.pool, self.shared)
        self._touched: dict[JobId, TrainingRun] = {}

    @property
    def active(self) -> JobId:
        """The job that has machines for longest; empty while nobody works."""
        line = self.working.values()
        first = min(line, key=lambda run: (not run.ctx.allotted, run.since_ns, run.ctx.job), default=None)
        return first.ctx.job if first is not None else ""

    # -- the fold ---------------------------------------------------------------------------------------------

    def restore(self, records: Iterable[tuple[str, JobRecord | PoolRecord]]) -> None:
        """Fold the whole log, in order: (stream, record)."""
        for name, record in records:
            match record:
                case Submitted():
                    self.runs[record.job] = self._run(RunState(record.job, record.spec))
                    self.runs[record.job].fold(record)
                case Snapshot():
                    state = parse(record.state, RunState)
                    self.runs[state.job] = self._run(state)
                case NodeRevoked():
                    self.revoked[record.node] = record.reason
                case TokenCreated() | TokenRedeemed():
                    pass  # the door keeps its own fold
                case _:
                    self.runs[name.removeprefix("job/")].fold(record)
        for run in self.runs.values():
            self._find_place(run)

    def _run(self, state: RunState) -> TrainingRun:
        return TrainingRun(state, self.pool, self.shared)

    def _find_place(self, run: TrainingRun) -> None:
        """After a restart: what it may begin with; its leases and shards say which machines a job had."""
        if run.over:
            run.rest()
        elif run.state.state == "queued":
            self.asking.wait(run, 0, 0)
        else:
            self.returning.remember(run)

    def handle(self, event: CoordinatorEvent, now_ns: int) -> list[Effect]:
        match event:
            case Tick():
                out = self._tick(event, now_ns)
            case Heard(node, message):
                out = self._heard(node, message, now_ns)
            case Lost():
                out = self._lost(event, now_ns)
            case EngineSaid(report):
                out = self._engine_said(report, now_ns)
            case Submit():
                out = self._submit(event, now_ns)
            case Cancel():
                out = self._cancel(event)
            case Resume():
                out = self._resume(event, now_ns)
            case Expel(node, reason):
                out = self._revoke(node, reason, now_ns)
            case Stop():
                out = self._stop()
            case BeginServing() | FrontAsks() | SuspectStage() | ReleaseMachines() | EndServing():
                self.servings.handle(event, now_ns)
                out = []
            case _:
                assert_never(event)
        return newest_list_only(out + self._advance(now_ns))

    def _touch(self, job: JobId) -> TrainingRun | None:
        """The run of this job, which acts on this event before it is over."""
        run = self.runs.get(job)
        if run is not None:
            self._touched[job] = run
            run.ctx.wall_ns = self.wall_ns
        return run

    def _touch_jobs_of(self, node: NodeId, named: Iterable[JobId] = ()) -> list[TrainingRun]:
        """The runs that this machine has to do with, and those that it names."""
        view = self.pool.get(node)
        jobs = dict.fromkeys([*self.shared.hosting.get(node, ()), view.job if view is not None else "", *named])
        return [run for job in sorted(jobs) if (run := self._touch(job)) is not None]

    # -- time ---------------------------------------------------------------------------------------------------

    def _tick(self, event: Tick, now_ns: int) -> list[Effect]:
        self.wall_ns = event.wall_ns
        out: list[Effect] = []
        for view in self.presence.silent(now_ns):
            silent_s = (now_ns - view.heard_ns) / NS_PER_S
            lost = self._lost(Lost(view.node, view.boot), now_ns)
            out += [Close(view.node, f"silent for {silent_s:.1f} s"), *lost]
        for view in self.presence.missed(now_ns):
            out += self._give_up(view)
        self._forget_absent(now_ns)
        for job in list(islice(self.working, max(ROTA, len(self.working) // 50))):
            self._touch(job)
        self.servings.tick(now_ns)
        self.asking.rethink(len(self.working) + len(self.servings.live), now_ns)
        if (command := self.admission.tick(self.vault)) is not None:
            out.append(Run(command))
        return out

    def _forget_absent(self, now_ns: int) -> None:
        """Machines that stay away are nobody's after a while, and what they had goes to others."""
        if self.presence.forgotten(now_ns):
            self.shared.changed = True
        for node, job in self.returning.absent(now_ns).items():
            run = self._touch(job)
            if run is not None and not run.over:
                run.node_lost(node)

    def _give_up(self, view: NodeView) -> list[Effect]:
        self.presence.give_up(view)
        self.shared.changed = True
        for run in self._touch_jobs_of(view.node):
            if not run.over:
                run.node_lost(view.node)
        return [Explain(view.node, "lost: its connection ended and it did not come back in time")]

    # -- nodes --------------------------------------------------------------------------------------------------

    def _heard(self, node: NodeId, message: FromNode, now_ns: int) -> list[Effect]:
        if node in self.revoked:
            return [Send(node, Refused(f"{node} was revoked: {self.revoked[node]}")), Close(node, "revoked")]
        if isinstance(message, Hello):
            return self._hello(node, message, now_ns)
        view = self.pool.get(node)
        if view is None or not view.connected:
            return []
        if isinstance(message, Heartbeat):
            self.presence.beat(view, now_ns)
            self.servings.beats(node, message)
        view.heard_ns = now_ns
        if isinstance(message, (EngineUp, EngineDown, PeersSet)) and message.shard == STAGE:
            self.servings.heard(node, message)
            return []
        for job in _jobs_in(message) if isinstance(message, Heartbeat) else (message.job,):
            if (run := self._touch(job)) is not None and not run.heard(node, message, now_ns):
                del self._touched[job]  # nothing follows from it
        return []

    def _hello(self, node: NodeId, message: Hello, now_ns: int) -> list[Effect]:
        """`node` is whose stream it is, by its certificate."""
        if message.node != node:
            return [Reject(node, f"it introduces itself as {message.node}")]
        known = self.pool.get(node)
        if known is not None:
            known.boot, known.capability = message.boot, message.capability
            self.presence.back(known, now_ns)
        else:
            self.shared.joined_ns = now_ns
            self.pool[node] = known = NodeView(node, message.boot, message.capability, True, now_ns)
            self.presence.watch(known, now_ns)
            self.returning.recognise(known, self.runs)
        self.shared.keepers.pop(node, None)
        if known.keeper:
            self.shared.keepers[node] = known
        self.shared.changed = True
        self.returning.take_back(known, message, self.working)
        self.servings.hello(known, message, now_ns)
        for run in self._touch_jobs_of(node, _jobs_in(message)):
            if run.ctx.plan is not None:
                run.heard(node, message, now_ns)
        return [
            Send(node, Welcome(self.term, self.options.heartbeat_ms)),
            Explain(node, f"joined: {_describe(message)}"),
        ]

    def _lost(self, event: Lost, now_ns: int) -> list[Effect]:
        view = self.pool.get(event.node)
        if view is None or view.boot != event.boot or not view.connected:
            return []
        self.presence.away(view, now_ns)
        self.servings.lost(view.node)
        self._touch_jobs_of(view.node)
        return []

    def _revoke(self, node: NodeId, reason: str, now_ns: int) -> list[Effect]:
        """Its stream ends, its keys are admitted nowhere any more, its work and its shards go to others."""
        self.revoked[node] = reason
        view = self.pool.get(node)
        if view is not None:
            view.revoked, view.connected, view.given_up, view.lost_ns = True, False, True, now_ns
        self.presence.left(node)
        self.servings.lost(node)
        self.shared.keepers.pop(node, None)
        self.shared.changed = True
        for run in self._touch_jobs_of(node):
            if not run.over:
                run.node_lost(node)
                recovery.expel(run.ctx, node)
        return [Close(node, f"{node} was revoked: {reason}"), Explain(node, f"revoked: {reason}")]

    # -- engines of the coordinator itself ----------------------------------------------------------------------

    def _engine_said(self, report: Report, now_ns: int) -> list[Effect]:
        match report:
            case Opened(address):
                return self._vault_opened(address)
            case EngineExited(reason):
                return [Explain("vault", f"the vault ended and starts again: {reason}")]
            case PeersKnown(number):
                for job in self.admission.acknowledged(number):
                    self._touch(job)
            case JobPrepared(job) | Sealed(job) | Exported(job):
                if (run := self._touch(job)) is not None:
                    run.engine_said(report, now_ns)
            case Failed(_, subject) if (run := self._touch(subject)) is not None:
                run.engine_said(report, now_ns)
            case _:
                pass
        return []

    def _vault_opened(self, address: Address) -> list[Effect]:
        self.vault = address
        self.shared.changed = True
        self.admission.vault_opened()
        for job, run in self.working.items():
            self._touch(job)
            run.vault_opened(address)
        keys = self.admission.keys()
        return [Run(SetPeers(self.shared.lists.last, keys, address))] if self.working else []

    # -- jobs ---------------------------------------------------------------------------------------------------

    def _submit(self, event: Submit, now_ns: int) -> list[Effect]:
        if event.job in self.runs:
            return []
        record = Submitted(event.job, event.spec, event.wall_ns)
        run = self._run(RunState(event.job, event.spec))
        run.fold(record)
        self.runs[event.job] = run
        self.asking.wait(run, now_ns, self.wall_ns)
        self.shared.changed = True
        return [Persist(stream(event.job), record), Explain(event.job, "submitted")]

    def _cancel(self, event: Cancel) -> list[Effect]:
        run = self.runs.get(event.job)
        if run is not None and not run.over:
            self._touch(event.job)
            run.cancel()
        return []

    def _resume(self, event: Resume, now_ns: int) -> list[Effect]:
        """A cancelled or failed job goes on from its last checkpoint."""
        run = self.runs.get(event.job)
        if run is None or run.state.state not in ("cancelled", "failed"):
            return []
        run.ctx.wall_ns = self.wall_ns
        out = run.resume()
        run.since_ns = now_ns
        self.asking.wait(run, now_ns, self.wall_ns)
        self.shared.changed = True
        return out

    def _stop(self) -> list[Effect]:
        """Save what is not saved; the host ends the process when `unsaved` is empty."""
        self.stopping = True
        for job, run in self.working.items():
            run.ctx.save_now = run.ctx.stopping = True
            self._touch(job)
        return []

    def unsaved(self) -> list[JobId]:
        """Running jobs with commits that no checkpoint contains yet."""
        return [job for job, run in self.working.items() if run.unsaved()]

    # -- what follows ---------------------------------------------------------------------------------------------

    def _advance(self, now_ns: int) -> list[Effect]:
        out: list[Effect] = []
        if not self.stopping and self.asking.due(len(self.working), now_ns):
            out += self._allot(now_ns)
        touched, self._touched = self._touched, {}
        for job, run in touched.items():
            out += self._settled(job, run, now_ns)
        out += self.servings.take()
        return out

    def _settled(self, job: JobId, run: TrainingRun, now_ns: int) -> list[Effect]:
        """What a run does about what it heard, and where it stands afterwards."""
        works = job in self.working
        said = run.advance(now_ns) if works else run.take()
        out = self._admit(job, said) if said else said
        if works:
            self.working[job] = self.working.pop(job)
        queued = run.state.state == "queued"
        if (works and queued) or (run.over and (works or job in self.returning.runs or job in self.asking.waits)):
            self._gives_up(job, run, now_ns)
        return out

    def _gives_up(self, job: JobId, run: TrainingRun, now_ns: int) -> None:
        """It is over, or back in the queue: its machines are free."""
        for node in run.ctx.allotted:
            if (view := self.pool.get(node)) is not None and view.job == job:
                view.job = ""
        run.ctx.allotted.clear()
        self.admission.over(job)
        self.shared.changed = True
        if run.over:
            self.asking.forget(job)
            self.why.pop(job, None)
            run.rest()
        else:
            run.waits(now_ns)
            self.asking.wait(run, now_ns, self.wall_ns)
        self.working.pop(job, None)
        self.returning.runs.pop(job, None)

    def _admit(self, job: JobId, effects: list[Effect]) -> list[Effect]:
        """The vault hears one list for all runs, not one of each."""
        out: list[Effect] = []
        for effect in effects:
            if isinstance(effect, Run) and isinstance(effect.command, SetPeers):
                said = effect.command
                command = self.admission.said(job, said.number, said.keys, said.vault)
                out += [Run(command)] if command is not None else []
            else:
                out.append(effect)
        return out

    # -- who has which machines -----------------------------------------------------------------------------------

    def _allot(self, now_ns: int) -> list[Effect]:
        """Ask the scheduler, and do what it says. One that ran before need not wait until the vault is open."""
        vault = bool(self.vault.endpoint)
        again = [run for run in self.returning.runs.values() if vault or run.state.state == "running"]
        servings = self.servings.facts()
        allotment = self.asking.ask([*self.working.values(), *again], vault, now_ns, self.wall_ns, servings)
        out = self._explain(allotment)
        having = {run.ctx.job: run for run in (*self.working.values(), *again)}
        changed = {
            job: wanted
            for job in dict.fromkeys([*having, *allotment.nodes])
            if job in self.runs
            and (
                (wanted := set(allotment.nodes.get(job, ()))) != self.runs[job].ctx.allotted or job not in self.working
            )
        }
        serving = self.servings.changed(allotment.nodes)
        self._hand_over(changed | serving)
        for job, wanted in changed.items():
            if job in having:
                self._reallot(self.runs[job], wanted, now_ns)
        for job, wanted in changed.items():
            if job in allotment.nodes and job not in self.working:
                out += self._begin(job, wanted, now_ns)
        self.servings.allot(serving, now_ns)
        return out

    def _hand_over(self, changed: dict[JobId, set[NodeId]]) -> None:
        """Note of each machine whom it works for now."""
        for job, wanted in changed.items():
            serving = self.servings.live.get(job)
            had = serving.allotted if serving is not None else self.runs[job].ctx.allotted
            for node in had - wanted:
                if (view := self.pool.get(node)) is not None and view.job == job:
                    view.job = ""
        for job, wanted in changed.items():
            for node in wanted:
                self.pool[node].job = job

    def _reallot(self, run: TrainingRun, wanted: set[NodeId], now_ns: int) -> None:
        had = run.ctx.allotted
        takers = sorted({self.pool[n].job for n in had - wanted if n in self.pool} - {""})
        if bool(had) != bool(wanted):
            run.since_ns = now_ns
        run.allot(wanted, f"{', '.join(takers) or 'nobody'} has its machines now", now_ns)
        self._touch(run.ctx.job)

    def _begin(self, job: JobId, wanted: set[NodeId], now_ns: int) -> list[Effect]:
        run = self.working[job] = self.runs[job]
        self.returning.runs.pop(job, None)
        self.asking.leave(job)
        self._touch(job)
        run.begins(now_ns)
        run.ctx.allotted = set(wanted)
        run.begin(self.vault)
        return self._admit(job, run.take())

    def _explain(self, allotment: Allotment) -> list[Effect]:
        """Every sentence that is new."""
        out: list[Effect] = []
        for subject, text in (*allotment.jobs_why.items(), *allotment.nodes_why.items()):
            if self.why.get(subject) != text:
                self.why[subject] = text
                out.append(Explain(subject, text))
        return out


def _jobs_in(message: Hello | Heartbeat) -> list[JobId]:
    """The jobs that a machine says it works for or keeps parameters of."""
    if not message.shards and len(message.workers) == 1:
        return [message.workers[0].job]  # what most machines say, most of the time
    return list(dict.fromkeys([*(w.job for w in message.workers), *(s.job for s in message.shards)]))


def _describe(message: Hello) -> str:
    c = message.capability
    parts = [name for name, on in (("worker", c.worker), ("shard", c.shard)) if on]
    return f"{c.cores} cores, {c.memory_bytes / 2**30:.1f} GiB, {c.platform}, as {' and '.join(parts)}"
