"""A machine's part in a serving, in the node's parent: the life of the stage's engine, and who may connect to it.

It knows nothing of layers or tokens: the engine hears those from the front, over the tensor plane. An engine that died
is started again, fresh; so it is when the coordinator names a new generation, which is how one that hangs is replaced.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import assert_never

from medley.protocol.effects import Effect, Explain, Report, Run, StopEngine
from medley.protocol.engine import EngineExited, Opened, OpenStage, PeersKnown, Progress, SetPeers, StageReport
from medley.protocol.events import EngineSaid, NodeEvent, Tick, Told
from medley.protocol.ids import Generation, NodeId
from medley.protocol.messages import (
    Address,
    AssignStage,
    EngineDown,
    EngineUp,
    Leave,
    Peers,
    PeersSet,
    ShardStatus,
    ToStage,
    Welcome,
)
from medley.protocol.stages.words import STAGE


@dataclass(slots=True)
class StageHost:
    """Of one serving, on the machine `node`."""

    node: NodeId
    assignment: AssignStage
    address: Address | None = None  # of the present engine, once it listens
    peers: int = 0  # the newest list that it was given

    @property
    def generation(self) -> Generation:
        return self.assignment.generation

    def start(self) -> list[Effect]:
        """Effects that begin this role's life, and each engine's."""
        a = self.assignment
        return [Run(OpenStage(a.job, a.generation, self.node, a.threads))]

    def status(self) -> ShardStatus:
        a = self.assignment
        return ShardStatus(a.job, a.generation, STAGE, -1, (), (), self.address is not None)

    def handle(self, event: NodeEvent, now_ns: int) -> list[Effect]:
        match event:
            case Tick():
                return []
            case Told(message):
                return self._told(message)  # type: ignore[arg-type]
            case EngineSaid(report):
                return self._engine_said(report)  # type: ignore[arg-type]
            case _:
                assert_never(event)

    # -- the coordinator speaks -------------------------------------------------------------------------------

    def _told(self, message: ToStage | Welcome) -> list[Effect]:
        if isinstance(message, Welcome):
            return self._introduce()
        if isinstance(message, AssignStage):
            return self._assigned(message)
        if message.generation != self.generation:
            return []
        match message:
            case Peers():
                return self._told_peers(message)
            case Leave():
                return [StopEngine(message.reason)]
            case _:
                assert_never(message)

    def _introduce(self) -> list[Effect]:
        a = self.assignment
        return [] if self.address is None else [Report(EngineUp(a.job, a.generation, STAGE, self.address))]

    def _assigned(self, message: AssignStage) -> list[Effect]:
        if message.generation < self.generation:
            return []
        if message.generation == self.generation:
            return self._introduce()
        before, self.assignment = self.generation, message
        self.address, self.peers = None, 0
        return [StopEngine(f"generation {message.generation} of {message.job} begins after {before}")]

    def _told_peers(self, message: Peers) -> list[Effect]:
        if message.number < self.peers:
            return []  # an older list, said again
        self.peers = message.number
        return [Run(SetPeers(message.number, message.keys, message.vault))]

    # -- the engine speaks ------------------------------------------------------------------------------------

    def _engine_said(self, report: StageReport) -> list[Effect]:
        a = self.assignment
        match report:
            case Opened(address):
                self.address = address
                return self._introduce()
            case PeersKnown(number):
                return [Report(PeersSet(a.job, a.generation, STAGE, number))]
            case EngineExited(reason, memory):
                self.address, self.peers = None, 0
                down = EngineDown(a.job, a.generation, STAGE, reason, memory)
                return [Report(down), Explain(self.node, f"its stage's engine ended: {reason}"), *self.start()]
            case Progress():
                return []
            case _:
                assert_never(report)
