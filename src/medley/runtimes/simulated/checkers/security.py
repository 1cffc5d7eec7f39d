"""S1 to S3: a revoked machine is nobody, answers count only from whom was asked, and nothing grows without bound."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from medley.protocol import messages as m
from medley.protocol.effects import Effect, Persist, Run, Send
from medley.protocol.engine import SetPeers
from medley.protocol.events import Event, Expel, Heard
from medley.protocol.ids import JobId, NodeId, UpdateId, Version
from medley.protocol.records import Aborted, HeldoutMeasured, Leased, Placed, Promoted, Record
from medley.runtimes.simulated.checkers.book import Book
from medley.runtimes.simulated.checkers.violation import Violation
from medley.runtimes.simulated.watch import COORDINATOR, Watcher

if TYPE_CHECKING:
    from medley.runtimes.simulated.world import World


class Security(Watcher):
    """`keys` are those that each machine's engines were introduced with."""

    def __init__(self, book: Book) -> None:
        self.book = book
        self.revoked: set[NodeId] = set()
        self.keys: dict[NodeId, set[str]] = {}
        self.asked: dict[JobId, tuple[NodeId, Version]] = {}

    def persisted(self, world: World, stream: str, record: Record) -> None:
        match record:
            case Leased(lease, node) if node in self.revoked:
                raise Violation("S1", f"{node} was revoked and gets lease {lease}")
            case Placed(_, _, shards):
                for place in shards:
                    self._not_revoked(place.shard, place.primary, place.backup)
            case Promoted(shard, primary, backup):
                self._not_revoked(shard, primary, backup)
            case _:
                pass

    def _not_revoked(self, shard: int, *nodes: NodeId) -> None:
        if gone := self.revoked.intersection(nodes):
            raise Violation("S1", f"{', '.join(gone)} was revoked and gets shard {shard}")

    def handled(
        self, world: World, who: NodeId, key: tuple[JobId, int] | None, event: Event, effects: Sequence[Effect]
    ) -> None:
        if who != COORDINATOR:
            return
        match event:
            case Expel(node):
                self.revoked.add(node)
            case Heard(node, m.EngineUp() as said):
                self.keys.setdefault(node, set()).add(said.address.key)
            case _:
                pass
        for effect in effects:
            match effect:
                case Send(node, message):
                    self._sent(node, message)
                case Run(SetPeers(_, keys)):
                    self._admits(keys)
                case Persist(stream, HeldoutMeasured(version)):
                    self._measured(stream.removeprefix("job/"), version, event)
                case Persist(stream, Aborted(update)):
                    self._dropped(world, stream.removeprefix("job/"), update, effects)
                case _:
                    pass
        self._bounded(world)

    def _sent(self, node: NodeId, message: m.ToNode) -> None:
        if node in self.revoked and not isinstance(message, m.Refused):
            raise Violation("S1", f"{node} was revoked and is told {type(message).__name__}")
        match message:
            case m.Peers():
                self._admits(message.keys)
            case m.Evaluate(job, _, version):
                self.asked[job] = (node, version)
            case _:
                pass

    def _admits(self, keys: tuple[str, ...]) -> None:
        for node in self.revoked:
            if self.keys.get(node, set()).intersection(keys):
                raise Violation("S1", f"{node} was revoked and its keys are admitted")

    def _measured(self, job: JobId, version: Version, event: Event) -> None:
        asked = self.asked.get(job)
        match event:
            case Heard(node, m.Evaluated() as said) if asked == (node, version) and said.version == version:
                pass
            case _:
                raise Violation("S1", f"the measurement of {version} is what {event} says; asked was {asked}")

    def _bounded(self, world: World) -> None:
        if world.coordinator is None:
            return
        for run in world.coordinator.runs.values():
            if run.ctx.plan is None:
                continue
            sync = run.ctx.plan.spec.train.sync
            of: dict[NodeId, int] = {}
            for flight in run.ctx.roster.updates.values():
                of[flight.node] = of.get(flight.node, 0) + 1
            limit = len(run.state.ledger.leases) if sync.mode == "sync" else sync.in_flight
            if of and max(of.values()) > limit:
                raise Violation("S3", f"updates that wait: {of}, allowed are {limit} of one worker")

    def _dropped(self, world: World, job: JobId, update: UpdateId, effects: Sequence[Effect]) -> None:
        """What is refused is dropped by every shard that can be reached, at once; one that begins now has nothing."""
        said = [(effect.node, effect.message) for effect in effects if isinstance(effect, Send)]
        told = {(node, x.shard) for node, x in said if isinstance(x, m.Drop) and update in x.updates}
        told |= {(node, x.shard) for node, x in said if isinstance(x, m.AssignShard)}
        account, coordinator = self.book.jobs[job], world.coordinator
        if coordinator is None or account.state != "running":
            return
        for place in account.places.values():
            for node in filter(None, (place.primary, place.backup)):
                view = coordinator.pool.get(node)
                if view is not None and view.connected and (node, place.shard) not in told:
                    raise Violation("S3", f"{update} is refused and {node} may keep its part of shard {place.shard}")
