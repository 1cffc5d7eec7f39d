"""All servings of a coordinator: which one an event concerns, which ones are over, and what stages say unasked.

A stage that nobody here knows of is either left over from a serving that ended, and leaves, or from one that an
earlier coordinator knew: then the serving is kept open until its front has come back for it, or has had its time.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import assert_never

from medley.policies.scheduling.view import JobFacts
from medley.protocol.effects import Effect, Reject, Send
from medley.protocol.hosting import (
    BeginServing,
    EndServing,
    FrontAsks,
    HostingEvent,
    ReleaseMachines,
    SuspectStage,
)
from medley.protocol.ids import JobId, NodeId
from medley.protocol.messages import EngineDown, EngineUp, Heartbeat, Hello, Leave, PeersSet, ShardStatus
from medley.protocol.stages.words import STAGE
from medley.roles.context import NodeView, Shared
from medley.roles.hosting import Hosting

SERVINGS_MAX = 64
ENDED_MAX = 256  # servings that are remembered to be over
OVER = "this serving is over"


class Servings:
    """Of the machines in `pool`."""

    def __init__(self, pool: dict[NodeId, NodeView], shared: Shared) -> None:
        self._pool = pool
        self._shared = shared
        self._out: list[Effect] = []
        self.live: dict[JobId, Hosting] = {}
        self.ended: dict[JobId, str] = {}

    # -- fronts -----------------------------------------------------------------------------------------------

    def handle(self, event: HostingEvent, now_ns: int) -> None:
        if isinstance(event, BeginServing):
            self._begin(event, now_ns)
            return
        hosting = self.live.get(event.job)
        if hosting is None:
            return
        hosting.heard_ns = now_ns
        match event:
            case FrontAsks():
                pass
            case SuspectStage():
                hosting.suspect(event)
            case ReleaseMachines():
                hosting.release(event)
            case EndServing():
                hosting.end(event.reason)
                self._close(hosting)
            case _:
                assert_never(event)

    def _begin(self, event: BeginServing, now_ns: int) -> None:
        hosting = self.live.get(event.job)
        if hosting is None:
            if len(self.live) >= SERVINGS_MAX:
                self._out.append(Reject(event.job, f"{SERVINGS_MAX} servings are under way"))
                return
            hosting = self._open(event.job, now_ns)
        hosting.begin(event, now_ns)

    def _open(self, job: JobId, now_ns: int) -> Hosting:
        self.ended.pop(job, None)
        hosting = self.live[job] = Hosting(job, self._pool, self._shared, now_ns, now_ns)
        return hosting

    # -- machines ---------------------------------------------------------------------------------------------

    def hello(self, view: NodeView, message: Hello, now_ns: int) -> None:
        said = {status.job: status for status in message.shards if status.shard == STAGE}
        for job, status in said.items():
            if job not in self.live or view.node not in self.live[job].stages:
                self._stray(view, status, now_ns)
        for hosting in self.live.values():
            if view.node in hosting.stages:
                hosting.hello(view.node, said.get(hosting.job))

    def _stray(self, view: NodeView, status: ShardStatus, now_ns: int) -> None:
        """It serves for somebody who did not tell us, or has done so for too long."""
        hosting = self.live.get(status.job)
        known = hosting is not None or (status.job not in self.ended and len(self.live) < SERVINGS_MAX)
        if not known or view.job not in ("", status.job) or not view.capability.worker:
            self._dismiss(view.node, status.job, status.generation)
            return
        hosting = hosting or self._open(status.job, now_ns)
        hosting.adopt(view.node, status)
        view.job = status.job

    def _dismiss(self, node: NodeId, job: JobId, generation: int) -> None:
        self._out.append(Send(node, Leave(job, generation, STAGE, self.ended.get(job, OVER))))

    def beats(self, node: NodeId, message: Heartbeat) -> None:
        """Who was told to leave and did not hear it hears it again."""
        for status in message.shards:
            if status.shard == STAGE and not self._serves(node, status.job):
                self._dismiss(node, status.job, status.generation)

    def heard(self, node: NodeId, message: EngineUp | EngineDown | PeersSet) -> None:
        if self._serves(node, message.job):
            self.live[message.job].heard(node, message)
        else:
            self._dismiss(node, message.job, message.generation)

    def _serves(self, node: NodeId, job: JobId) -> bool:
        return job in self.live and node in self.live[job].stages

    def lost(self, node: NodeId) -> None:
        for hosting in self.live.values():
            if node in hosting.stages:
                hosting.lost(node)

    def tick(self, now_ns: int) -> None:
        for hosting in list(self.live.values()):
            hosting.tick(now_ns)
            if hosting.ended:
                self._close(hosting)

    # -- the scheduler ----------------------------------------------------------------------------------------

    def facts(self) -> list[JobFacts]:
        return [hosting.facts() for hosting in self.live.values()]

    def changed(self, nodes: Mapping[JobId, tuple[NodeId, ...]]) -> dict[JobId, set[NodeId]]:
        """The machines that each serving shall have, where that is news."""
        wanted = {job: set(nodes.get(job, ())) for job in self.live}
        return {job: some for job, some in wanted.items() if some != self.live[job].allotted}

    def allot(self, wanted: Mapping[JobId, set[NodeId]], now_ns: int) -> None:
        for job, nodes in wanted.items():
            hosting = self.live[job]
            gone = [self._pool[node] for node in hosting.allotted - nodes]
            reasons = {view.node: f"it works for {view.job} now" for view in gone if view.job}
            hosting.allot(nodes, reasons, now_ns)

    # -- effects ----------------------------------------------------------------------------------------------

    def take(self) -> list[Effect]:
        """What all of them want done."""
        out, self._out = self._out, []
        for hosting in self.live.values():
            out += hosting.take()
        return out

    def _close(self, hosting: Hosting) -> None:
        """It is over, and gives its machines back."""
        job = hosting.job
        del self.live[job]
        self._out += hosting.take()
        self.ended[job] = hosting.ended
        while len(self.ended) > ENDED_MAX:
            del self.ended[next(iter(self.ended))]
        for node in hosting.allotted:
            if (view := self._pool.get(node)) is not None and view.job == job:
                view.job = ""
        self._shared.changed = True
