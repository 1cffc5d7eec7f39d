"""T4, the half that is about time: what a worker was told to pull, or a shard to write, stays pinned until it has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from medley.protocol import messages as m
from medley.protocol.effects import Close, Effect, Persist, Send
from medley.protocol.events import Event, Expel, Heard, Lost
from medley.protocol.ids import Generation, JobId, NodeId, Version
from medley.protocol.records import Placed, Promoted
from medley.protocol.stages.words import STAGE
from medley.runtimes.simulated.checkers.book import Book
from medley.runtimes.simulated.checkers.violation import Violation
from medley.runtimes.simulated.watch import COORDINATOR, Watcher

if TYPE_CHECKING:
    from medley.runtimes.simulated.world import World

PINS_MAX = 3


@dataclass(slots=True)
class _Pins:
    """One job's. `pulling`: what each worker was told to begin from and has not acknowledged. `loose`: what a primary
    may or may not keep, since its stream broke when it was told, or before.
    """

    generation: Generation = 0
    primaries: dict[int, NodeId] = field(default_factory=dict)
    pinned: dict[tuple[NodeId, int], set[Version]] = field(default_factory=dict)  # by primary
    pulling: dict[NodeId, Version] = field(default_factory=dict)
    loose: dict[tuple[NodeId, int], set[Version]] = field(default_factory=dict)

    away: dict[NodeId, Version] = field(default_factory=dict)  # the version at which a primary was away last
    unpinned: list[tuple[NodeId, int, Version]] = field(default_factory=list)  # in the step at hand

    def broke(self, node: NodeId, version: Version) -> None:
        self.away[node] = version
        for key, pinned in self.pinned.items():
            if key[0] == node:
                self.loose.setdefault(key, set()).update(pinned)
                pinned.clear()


class Pins(Watcher):
    def __init__(self, book: Book) -> None:
        self.book = book
        self.jobs: dict[JobId, _Pins] = {}

    def started(self, world: World) -> None:
        self.jobs.clear()  # a new coordinator knows of no pins: what shards still keep is unpinned by their status

    def handled(
        self, world: World, who: NodeId, key: tuple[JobId, int] | None, event: Event, effects: Sequence[Effect]
    ) -> None:
        if who != COORDINATOR:
            return
        self._released(event)
        for effect in effects:
            match effect:
                case Persist(stream, Placed(generation) as placed):
                    primaries = {p.shard: p.primary for p in placed.shards}
                    self.jobs[stream.removeprefix("job/")] = _Pins(generation, primaries)
                case Persist(stream, Promoted(shard, primary)):
                    self._promoted(self._of(stream.removeprefix("job/")), shard, primary)
                case Send(node, message):
                    self._sent(world, node, message)
                case Close(node):
                    self._gone(node)
                case _:
                    pass

        self._still_needed(world)

    def _gone(self, node: NodeId) -> None:
        for job, pins in self.jobs.items():
            pins.pulling.pop(node, None)
            pins.broke(node, self.book.jobs[job].version)

    def _of(self, job: JobId) -> _Pins:
        account = self.book.jobs[job]
        primaries = {shard: place.primary for shard, place in account.places.items()}
        return self.jobs.setdefault(job, _Pins(account.generation, primaries))

    def _released(self, event: Event) -> None:
        """A worker that says anything of these does not need its version any more."""
        match event:
            case Heard(node, m.BaseHeld() as message):
                pins = self._of(message.job)
                if message.generation == pins.generation and pins.pulling.get(node) == message.version:
                    del pins.pulling[node]
            case Heard(node, m.BaseWanted() | m.UpdateReady() | m.EngineDown() | m.LeaseFailed() as message):
                self._of(message.job).pulling.pop(node, None)
            case Heard(node, m.Heartbeat() | m.Hello() as message):
                phases = {w.job: w.phase for w in message.workers}
                for job, pins in self.jobs.items():
                    if isinstance(message, m.Hello) or phases.get(job) not in ("wanting", "pulling"):
                        pins.pulling.pop(node, None)
                    if isinstance(message, m.Hello):
                        pins.broke(node, self.book.jobs[job].version)
            case Lost(node) | Expel(node):
                self._gone(node)
            case _:
                pass

    def _promoted(self, pins: _Pins, shard: int, primary: NodeId) -> None:
        if pins.primaries.get(shard) != primary:
            pins.pulling.clear()  # they will fail and ask again
        pins.primaries[shard] = primary

    def _sent(self, world: World, node: NodeId, message: m.ToNode) -> None:
        match message:
            case m.Pin(job, _, shard, version):
                pinned = self._of(job).pinned.setdefault((node, shard), set())
                pinned.add(version)
                if len(pinned) > PINS_MAX:
                    raise Violation("S3", f"{node} keeps {sorted(pinned)} of shard {shard}")
            case m.Unpin(job, _, shard, version):
                self._unpinned(self._of(job), node, shard, version)
            case m.Base(job, _, _, version):
                self._needs(world, self._of(job), job, version, f"{node} is told to begin from {version}")
                self._of(job).pulling[node] = version
            case m.Evaluate(job, _, version):
                self._needs(world, self._of(job), job, version, f"{node} is told to measure {version}")
            case m.WritePart(job, _, shard, version):
                self._kept(world, self._of(job), node, shard, version, f"{node} is told to write {version}")
            case m.Leave(_, _, shard) if shard == STAGE:
                pass
            case m.Revoke(job) | m.Leave(job):
                self._of(job).pulling.pop(node, None)
            case _:
                pass

    def _needs(self, world: World, pins: _Pins, job: JobId, version: Version, what: str) -> None:
        for place in self.book.jobs[job].places.values():
            self._kept(world, pins, place.primary, place.shard, version, what)

    def _kept(self, world: World, pins: _Pins, node: NodeId, shard: int, version: Version, what: str) -> None:
        if version in pins.pinned.get((node, shard), ()) or version in pins.loose.get((node, shard), ()):
            return
        view = world.coordinator.pool.get(node) if world.coordinator is not None else None
        # What was pinned while a primary was away is not said to it later: it may still have that version, or the pull
        # fails and is tried again with a newer one.
        if view is None or not view.connected or version <= pins.away.get(node, -1):
            pins.loose.setdefault((node, shard), set()).add(version)
            return
        raise Violation("T4", f"{what}, which shard {shard} on {node} has not pinned")

    def _unpinned(self, pins: _Pins, node: NodeId, shard: int, version: Version) -> None:
        pins.loose.get((node, shard), set()).discard(version)
        pinned = pins.pinned.get((node, shard), set())
        if version not in pinned:
            return  # left from before: its status said so
        pinned.discard(version)
        pins.unpinned.append((node, shard, version))

    def _still_needed(self, world: World) -> None:
        """What was unpinned in this step may have been pinned again, or taken from who was to pull it; a part under way
        needs its version. Nobody pulls from a machine that is not the primary any more.
        """
        for job, pins in self.jobs.items():
            run = world.run_of(job)
            saving = run.ctx.saving if run is not None else None
            for node, shard, version in pins.unpinned:
                if pins.primaries.get(shard) != node:
                    continue
                again = version in pins.pinned.get((node, shard), ())
                waiting = [n for n, v in pins.pulling.items() if v == version]
                if waiting and not again:
                    raise Violation("T4", f"{version} is unpinned on {node}; {', '.join(waiting)} was told to pull it")
                if saving is None or again or saving.version != version or shard in saving.parts or saving.sealing:
                    continue
                raise Violation("T4", f"{version} is unpinned on {node} before it has written its part of {shard}")
            pins.unpinned.clear()
