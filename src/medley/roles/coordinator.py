"""The coordinator: who is in the pool, which job has it, and every run's side of the conversation.

One job has the pool at a time; the others wait in the order of their submission. The coordinator is the only writer
of the log. Its state is the fold of that log (`restore`), plus what nodes say of themselves when they (re)connect.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import assert_never

from medley.policies.liveness import silent_too_long
from medley.protocol.codec import parse
from medley.protocol.effects import Close, Effect, Explain, Persist, Reject, Send
from medley.protocol.engine import (
    EngineExited,
    Exported,
    Failed,
    JobPrepared,
    Opened,
    PeersKnown,
    Report,
    Sealed,
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
from medley.protocol.ids import NS_PER_S, JobId, NodeId, Term
from medley.protocol.messages import Address, FromNode, Heartbeat, Hello, Refused, Welcome
from medley.protocol.records import (
    JobRecord,
    NodeRevoked,
    PoolRecord,
    Snapshot,
    Submitted,
    TokenCreated,
    TokenRedeemed,
)
from medley.roles import recovery
from medley.roles.context import NodeView, stream
from medley.roles.run import Run as TrainingRun
from medley.roles.state import RunState

HEARTBEAT_MS = 1000
RECONNECT_NS = NS_PER_S // 2  # a stream that ended may come back within this before its leases are given away


class Coordinator:
    """Pure: feed it events, execute its effects."""

    def __init__(self, term: Term) -> None:
        self.term = term
        self.pool: dict[NodeId, NodeView] = {}
        self.runs: dict[JobId, TrainingRun] = {}
        self.active: JobId = ""
        self.revoked: dict[NodeId, str] = {}
        self.heartbeats: dict[NodeId, list[int]] = {}
        self.stopping = False
        self.vault = Address("", "")
        self.wall_ns = 0

    # -- the fold ---------------------------------------------------------------------------------------------

    def restore(self, records: Iterable[tuple[str, JobRecord | PoolRecord]]) -> None:
        """Fold the whole log, in order: (stream, record)."""
        for name, record in records:
            match record:
                case Submitted():
                    self.runs[record.job] = TrainingRun(RunState(record.job, record.spec), self.pool)
                    self.runs[record.job].fold(record)
                case Snapshot():
                    state = parse(record.state, RunState)
                    self.runs[state.job] = TrainingRun(state, self.pool)
                case NodeRevoked():
                    self.revoked[record.node] = record.reason
                case TokenCreated() | TokenRedeemed():
                    pass  # the door keeps its own fold
                case _:
                    self.runs[name.removeprefix("job/")].fold(record)

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
                out = self._submit(event)
            case Cancel():
                out = self._cancel(event)
            case Resume():
                out = self._resume(event)
            case Expel(node, reason):
                out = self._revoke(node, reason, now_ns)
            case Stop():
                out = self._stop()
            case _:
                assert_never(event)
        return [*out, *self._advance(now_ns)]

    # -- time ---------------------------------------------------------------------------------------------------

    def _tick(self, event: Tick, now_ns: int) -> list[Effect]:
        self.wall_ns = event.wall_ns
        out: list[Effect] = []
        for view in list(self.pool.values()):
            if view.connected and silent_too_long(self.heartbeats.get(view.node, []), now_ns - view.heard_ns):
                silent_s = (now_ns - view.heard_ns) / NS_PER_S
                out.append(Close(view.node, f"silent for {silent_s:.1f} s"))
                out += self._lost(Lost(view.node, view.boot), now_ns)
            elif not view.connected and view.lost_ns and now_ns - view.lost_ns > RECONNECT_NS:
                out += self._give_up(view)
        return out

    def _give_up(self, view: NodeView) -> list[Effect]:
        if view.given_up:
            return []
        view.given_up = True
        for run in self.runs.values():
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
            self._beat(view, now_ns)
        view.heard_ns = now_ns
        for run in self.runs.values():
            if isinstance(message, Heartbeat) or run.ctx.job == message.job:
                run.heard(node, message, now_ns)
        return []

    def _hello(self, node: NodeId, message: Hello, now_ns: int) -> list[Effect]:
        """`node` is whose stream it is, by its certificate."""
        if message.node != node:
            return [Reject(node, f"it introduces itself as {message.node}")]
        known = self.pool.get(node)
        if known is not None:
            known.boot, known.capability = message.boot, message.capability
            known.connected, known.given_up, known.lost_ns, known.heard_ns = True, False, 0, now_ns
        else:
            self.pool[node] = NodeView(node, message.boot, message.capability, True, now_ns)
        for run in self.runs.values():
            if run.ctx.plan is not None:
                run.heard(node, message, now_ns)
        return [
            Send(node, Welcome(self.term, HEARTBEAT_MS)),
            Explain(node, f"joined: {_describe(message)}"),
        ]

    def _beat(self, view: NodeView, now_ns: int) -> None:
        intervals = self.heartbeats.setdefault(view.node, [])
        intervals.append(now_ns - view.heard_ns)
        del intervals[:-16]

    def _lost(self, event: Lost, now_ns: int) -> list[Effect]:
        view = self.pool.get(event.node)
        if view is None or view.boot != event.boot or not view.connected:
            return []
        view.connected, view.lost_ns = False, now_ns
        return []

    def _revoke(self, node: NodeId, reason: str, now_ns: int) -> list[Effect]:
        """Its stream ends, its keys are admitted nowhere any more, its work and its shards go to others."""
        self.revoked[node] = reason
        view = self.pool.get(node)
        if view is not None:
            view.revoked, view.connected, view.given_up, view.lost_ns = True, False, True, now_ns
        for job, run in self.runs.items():
            if not run.over:
                run.node_lost(node)
                recovery.expel(run.ctx, node, active=job == self.active)
        return [Close(node, f"{node} was revoked: {reason}"), Explain(node, f"revoked: {reason}")]

    # -- engines of the coordinator itself ----------------------------------------------------------------------

    def _engine_said(self, report: Report, now_ns: int) -> list[Effect]:
        match report:
            case Opened(address):
                self.vault = address
                if self.active in self.runs:
                    self.runs[self.active].vault_opened(address)
            case EngineExited(reason):
                return [Explain("vault", f"the vault ended and starts again: {reason}")]
            case PeersKnown():
                if self.active in self.runs:
                    self.runs[self.active].engine_said(report, now_ns)
            case JobPrepared(job) | Sealed(job) | Exported(job):
                self.runs[job].engine_said(report, now_ns)
            case Failed(_, subject) if subject in self.runs:
                self.runs[subject].engine_said(report, now_ns)
            case _:
                pass
        return []

    # -- jobs ---------------------------------------------------------------------------------------------------

    def _submit(self, event: Submit) -> list[Effect]:
        if event.job in self.runs:
            return []
        record = Submitted(event.job, event.spec, event.wall_ns)
        run = TrainingRun(RunState(event.job, event.spec), self.pool)
        run.fold(record)
        self.runs[event.job] = run
        return [Persist(stream(event.job), record), Explain(event.job, "submitted")]

    def _cancel(self, event: Cancel) -> list[Effect]:
        run = self.runs.get(event.job)
        if run is not None and not run.over:
            run.cancel()
        return []

    def _resume(self, event: Resume) -> list[Effect]:
        """A cancelled or failed job goes on from its last checkpoint."""
        run = self.runs.get(event.job)
        if run is None or run.state.state not in ("cancelled", "failed"):
            return []
        return run.resume()

    def _stop(self) -> list[Effect]:
        """Save what is not saved; the host ends the process when `unsaved` is empty."""
        self.stopping = True
        for run in self.runs.values():
            run.ctx.save_now = run.ctx.stopping = True
        return []

    def unsaved(self) -> list[JobId]:
        """Running jobs with commits that no checkpoint contains yet."""
        run = self.runs.get(self.active)
        return [self.active] if run is not None and run.unsaved() else []

    def _advance(self, now_ns: int) -> list[Effect]:
        out: list[Effect] = []
        if not self.stopping:
            out += self._choose()
        for job, run in self.runs.items():
            run.ctx.wall_ns = self.wall_ns
            out += run.advance(now_ns) if job == self.active else run.take()
        if self.active in self.runs and self.runs[self.active].over:
            self.active = ""
        return out

    def _choose(self) -> list[Effect]:
        """The pool goes to the job that waits longest; one that ran before need not wait until the vault is open."""
        if self.active:
            return []
        waiting = [r for r in self.runs.values() if not r.over and (self.vault.endpoint or r.state.state == "running")]
        if not waiting:
            return []
        chosen = min(waiting, key=lambda r: (r.state.state == "queued", r.state.submitted_wall_ns, r.ctx.job))
        self.active = chosen.ctx.job
        return [
            Explain(self.active, "it has the pool now: it waited longest"),
            *chosen.begin(self.vault, self.term << 32),
        ]


def _describe(message: Hello) -> str:
    c = message.capability
    parts = [name for name, on in (("worker", c.worker), ("shard", c.shard)) if on]
    return f"{c.cores} cores, {c.memory_bytes / 2**30:.1f} GiB, {c.platform}, as {' and '.join(parts)}"
