"""A shard replica: stages parts, applies commits in order, keeps pinned versions, writes checkpoint parts.

It decides nothing about training: it says what is staged, applies what is committed, exactly once and in order.
Commits that arrive early wait; commits that arrive again are recognised by their number. Pins are ordered with
commits by the coordinator's stream, which is what makes a version a consistent cut over all shards.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import isfinite
from typing import Literal, assert_never

from medley.protocol.effects import Effect, Explain, Reject, Report, Run, StopEngine
from medley.protocol.engine import (
    AppliedVersion,
    Apply,
    Discard,
    EngineExited,
    Failed,
    Loaded,
    LoadShard,
    Opened,
    OpenShard,
    PartArrived,
    PeersKnown,
    PinVersion,
    Progress,
    SetPeers,
    SetRelay,
    ShardReport,
    UnpinVersion,
    WriteVersion,
    WroteVersion,
)
from medley.protocol.events import EngineSaid, NodeEvent, Tick, Told
from medley.protocol.ids import NS_PER_S, Generation, UpdateId, Version
from medley.protocol.messages import (
    Address,
    Applied,
    AssignShard,
    Commit,
    Drop,
    EngineDown,
    EngineUp,
    HeldUpdate,
    Leave,
    LoadFailed,
    PartFailed,
    PartWritten,
    Peers,
    PeersSet,
    Pin,
    Ready,
    Relay,
    ShardStatus,
    Staged,
    ToShard,
    Unpin,
    Welcome,
    WritePart,
)

RETRY_NS = NS_PER_S
EnginePhase = Literal["down", "opening", "opened", "loading", "ready"]


@dataclass(slots=True)
class Shard:
    """One replica of one shard of one job."""

    assignment: AssignShard
    engine: EnginePhase = "down"
    version: Version = -1  # last commit handed to the engine
    staged: dict[UpdateId, HeldUpdate] = field(default_factory=dict)
    waiting: dict[Version, Commit] = field(default_factory=dict)
    pins: set[Version] = field(default_factory=set)
    peers: int = 0
    address: EngineUp | None = None
    backup: Address | None = None
    damaged: LoadFailed | None = None  # what it cannot load, until it is assigned anew
    load_failed_ns: int = 0  # while something waits to be tried again: when it failed
    relay_failed_ns: int = 0

    @property
    def generation(self) -> Generation:
        return self.assignment.generation

    def start(self) -> list[Effect]:
        """Effects that begin this role's life."""
        a = self.assignment
        self.engine = "opening"
        return [Run(OpenShard(a.job, a.generation, a.shard, a.plan, a.blocks, a.threads))]

    def status(self) -> ShardStatus:
        a = self.assignment
        return ShardStatus(
            a.job,
            a.generation,
            a.shard,
            self.version,
            tuple(self.staged.values()),
            tuple(sorted(self.pins)),
            self.engine == "ready",
        )

    def handle(self, event: NodeEvent, now_ns: int) -> list[Effect]:
        match event:
            case Tick():
                return self._try_again(now_ns)
            case Told(message):
                return self._told(message)  # type: ignore[arg-type]
            case EngineSaid(report):
                return self._engine_said(report, now_ns)  # type: ignore[arg-type]
            case _:
                assert_never(event)

    # -- the coordinator speaks -------------------------------------------------------------------------------

    def _told(self, message: ToShard | Welcome) -> list[Effect]:
        if isinstance(message, Welcome):
            return self._reintroduce()
        if isinstance(message, AssignShard):
            return self._assigned(message)
        if message.generation != self.generation:
            return []
        match message:
            case Peers() if message.number < self.peers:
                return []  # an older list, said again: whoever it lacks is admitted by now
            case Peers():
                return [Run(SetPeers(message.number, message.keys, message.vault))]
            case Relay():
                self.backup = message.backup
                return [Run(SetRelay(message.backup))]
            case Commit():
                return self._committed(message)
            case Drop():
                for update in message.updates:
                    self.staged.pop(update, None)
                return [Run(Discard(message.updates))]
            case Pin():
                return self._pinned(message)
            case Unpin():
                if message.version not in self.pins:
                    return []
                self.pins.discard(message.version)
                return [Run(UnpinVersion(message.version))]
            case WritePart():
                return [Run(WriteVersion(self.generation, message.version))]
            case Leave():
                return [StopEngine(message.reason)]
            case _:
                assert_never(message)

    def _reintroduce(self) -> list[Effect]:
        if self.address is None:
            return []
        effects: list[Effect] = [Report(replace(self.address, generation=self.generation))]
        return effects if self.damaged is None else [*effects, Report(self.damaged)]

    def _assigned(self, message: AssignShard) -> list[Effect]:
        if message.generation < self.generation:
            return []
        if message == self.assignment:
            return self._reintroduce()  # it was struck off and named again: what it said meanwhile was refused
        reload = self.engine in ("loading", "ready")
        self.assignment = message
        self._forget()
        effects: list[Effect] = []
        if self.address is not None:
            self.address = replace(self.address, generation=message.generation)
            effects.append(Report(self.address))
        if reload:
            self.engine = "loading"
            effects.append(Run(LoadShard(message.generation, message.version)))
        return effects

    def _committed(self, message: Commit) -> list[Effect]:
        if message.number <= self.version or self.engine != "ready":
            return []
        self.waiting[message.number] = message
        effects: list[Effect] = []
        while (commit := self.waiting.get(self.version + 1)) is not None:
            absent = [m.update for m in commit.members if m.update not in self.staged]
            if absent:
                return [
                    *effects,
                    Explain(f"shard {self.assignment.shard}", f"commit {commit.number} waits for {absent}"),
                ]
            del self.waiting[commit.number]
            for member in commit.members:
                del self.staged[member.update]
            self.version = commit.number
            effects.append(Run(Apply(self.generation, commit.number, commit.members, commit.lr)))
        return effects

    def _pinned(self, message: Pin) -> list[Effect]:
        if message.version in self.pins:
            return []
        if message.version != self.version:
            return [Reject("coordinator", f"pin of {message.version} at version {self.version}")]
        self.pins.add(message.version)
        return [Run(PinVersion(message.version))]

    # -- the engine speaks ------------------------------------------------------------------------------------

    def _engine_said(self, report: ShardReport, now_ns: int) -> list[Effect]:
        a = self.assignment
        match report:
            case Opened(address):
                self.engine = "opened"
                self.address = EngineUp(a.job, a.generation, a.shard, address)
                return [Report(self.address)]
            case PeersKnown():
                return self._peers_known(report)
            case Loaded():
                return self._loaded(report)
            case PartArrived():
                return self._staged(report)
            case AppliedVersion(generation, version):
                return [Report(Applied(a.job, generation, a.shard, version))]
            case WroteVersion():
                written = PartWritten(
                    a.job,
                    report.generation,
                    a.shard,
                    report.version,
                    report.file,
                    report.digest,
                    report.nbytes,
                )
                return [Report(written)]
            case Failed():
                return self._failed(report, now_ns)
            case EngineExited():
                return self._exited(report)
            case Progress():
                return []
            case _:
                assert_never(report)

    def _peers_known(self, report: PeersKnown) -> list[Effect]:
        a = self.assignment
        self.peers = report.number
        effects: list[Effect] = [Report(PeersSet(a.job, a.generation, a.shard, report.number))]
        if self.engine == "opened":
            self.engine = "loading"
            effects.append(Run(LoadShard(a.generation, a.version)))
        return effects

    def _loaded(self, report: Loaded) -> list[Effect]:
        if report.generation != self.generation:
            return []
        a = self.assignment
        self.engine = "ready"
        self.version = report.version
        return [Report(Ready(a.job, a.generation, a.shard, report.version))]

    def _staged(self, report: PartArrived) -> list[Effect]:
        if report.generation != self.generation:
            return []
        a = self.assignment
        finite = report.finite and isfinite(report.squared_norm)
        held = HeldUpdate(report.update, finite, report.squared_norm if finite else 0.0)
        self.staged[report.update] = held
        said = Staged(a.job, a.generation, a.shard, held.update, finite, held.squared_norm, report.nbytes)
        waiting = self.waiting.get(self.version + 1)
        return [Report(said), *(self._committed(waiting) if waiting is not None else [])]

    def _failed(self, report: Failed, now_ns: int) -> list[Effect]:
        a = self.assignment
        if report.what == "write":
            return [Report(PartFailed(a.job, a.generation, a.shard, int(report.subject), report.reason))]
        if report.what == "load":
            return self._load_failed(report, now_ns)
        if report.what == "relay":
            self.relay_failed_ns = now_ns
        if report.what == "apply":
            return [StopEngine(f"{report.what} failed: {report.reason}")]
        return [Explain(f"shard {a.shard}", f"{report.what} failed: {report.reason}")]

    def _load_failed(self, report: Failed, now_ns: int) -> list[Effect]:
        """The vault may only be restarting: try again soon, unless the checkpoint itself is no good."""
        a = self.assignment
        if self.engine != "loading" or int(report.subject) != a.version:
            return []
        if report.fatal:
            self.damaged = LoadFailed(a.job, a.generation, a.shard, a.version, report.reason)
            return [Report(self.damaged)]
        self.engine, self.load_failed_ns = "opened", now_ns
        return [
            Explain(f"shard {a.shard}", f"loading checkpoint {a.version} failed, it is tried again: {report.reason}")
        ]

    def _try_again(self, now_ns: int) -> list[Effect]:
        if self.engine == "opened" and self.load_failed_ns and now_ns - self.load_failed_ns > RETRY_NS:
            self.engine, self.load_failed_ns = "loading", 0
            return [Run(LoadShard(self.generation, self.assignment.version))]
        if self.backup is not None and self.relay_failed_ns and now_ns - self.relay_failed_ns > RETRY_NS:
            self.relay_failed_ns = 0
            return [Run(SetRelay(self.backup))]  # passes on all that is staged; the backup knows what it has
        return []

    def _exited(self, report: EngineExited) -> list[Effect]:
        a = self.assignment
        self._forget()
        self.address = self.backup = None
        self.peers = 0
        down = EngineDown(a.job, a.generation, a.shard, report.reason, report.memory)
        return [Report(down), Explain(f"shard {a.shard}", f"engine ended: {report.reason}"), *self.start()]

    def _forget(self) -> None:
        self.version = -1
        self.staged.clear()
        self.waiting.clear()
        self.pins.clear()
        self.damaged = None
        self.load_failed_ns = self.relay_failed_ns = 0
