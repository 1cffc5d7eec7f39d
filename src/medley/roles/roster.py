"""The machines of one run, as the coordinator sees them now: engines, keys, what shards hold. Nothing here is durable.

Keys are numbered: a worker gets its routes only when the vault and every shard have acknowledged a list of keys
that contains the worker's own, so nobody is told to connect to a socket that would refuse it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, field

from medley.protocol.ids import LeaseId, NodeId, UpdateId, Version
from medley.protocol.messages import Address, HeldUpdate, Route, UpdateReady
from medley.protocol.records import ShardPlace

Engine = tuple[NodeId, int]  # shard -1: the node's worker
LIVES_MAX = 16
REFUSED_MAX = 1024  # verdicts that are remembered: far more than are ever on their way to honest workers


@dataclass(slots=True)
class WorkerView:
    """A worker of the present generation."""

    node: NodeId
    ready: bool = False
    hung: bool = False  # a lease was taken from it for taking too long, and it still computes
    late_ns: int = 0  # when that lease was begun
    patience: int = 1  # times the common limit, for one that turned out to be slow
    wanting: LeaseId = 0
    begun: dict[LeaseId, int] = field(default_factory=dict)  # when its base was granted
    routes: tuple[Route, ...] = ()
    tokens_per_s: float = 0.0
    residual_norm: float = 0.0
    micro_batch: int = 0


@dataclass(slots=True)
class ReplicaView:
    """One replica of one shard in the present generation."""

    node: NodeId
    shard: int
    ready: bool = False
    version: Version = -1
    peers: int = 0
    told_peers: int = 0
    told_relay: Address | None = None


@dataclass(slots=True)
class InFlight:
    """An update that a worker has announced."""

    report: UpdateReady
    node: NodeId
    arrived_ns: int


@dataclass(slots=True)
class KeyLists:
    """Lists of keys are numbered in one sequence for all runs of a coordinator, since they share one vault."""

    last: int = 0
    vault: int = -1  # the newest one that the vault has acknowledged

    def next(self) -> int:
        self.last += 1
        return self.last


@dataclass(slots=True)
class Roster:
    workers: dict[NodeId, WorkerView] = field(default_factory=dict)
    replicas: dict[Engine, ReplicaView] = field(default_factory=dict)
    addresses: dict[Engine, Address] = field(default_factory=dict)
    lives: dict[Engine, deque[Address]] = field(default_factory=dict)  # all that each has had, the newest last
    numbers: dict[Engine, int] = field(default_factory=dict)
    keys_number: int = 0  # of this run's newest list
    listed_too_many: bool = False  # that list names an engine that was forgotten since
    lists: KeyLists = field(default_factory=KeyLists)
    updates: dict[UpdateId, InFlight] = field(default_factory=dict)
    sent: dict[NodeId, dict[UpdateId, InFlight]] = field(default_factory=dict)  # the same of each machine
    refused: dict[UpdateId, None] = field(default_factory=dict)  # their workers were told to forget them
    staged: dict[UpdateId, dict[Engine, HeldUpdate]] = field(default_factory=dict)
    whole: dict[UpdateId, None] = field(default_factory=dict)  # found complete and acceptable, as of `whole_at`
    whole_at: tuple[Version, list[ShardPlace]] | None = None
    fresh: dict[UpdateId, None] = field(default_factory=dict)  # announced or staged since then
    orphans_ns: int = 0  # when orphans were looked for
    turnover: int = 0  # counts updates that were announced or dropped
    known_routes: tuple[Route, ...] = ()  # the same object for as long as nothing moves
    orphans: dict[UpdateId, int] = field(default_factory=dict)  # staged but not announced: since when

    @property
    def vault_number(self) -> int:
        return self.lists.vault

    def introduce(self, engine: Engine, address: Address) -> bool:
        """Remember where an engine listens; True if that is new. One that another has followed does not come back."""
        lives = self.lives.setdefault(engine, deque(maxlen=LIVES_MAX))
        if self.addresses.get(engine) == address or (address in lives and address != lives[-1]):
            return False
        if address not in lives:
            lives.append(address)
        self.addresses[engine] = address
        self.keys_number = self.lists.next()
        self.numbers[engine] = self.keys_number
        return True

    def forget(self, engine: Engine) -> None:
        if self.addresses.pop(engine, None) is not None:
            self.listed_too_many = True
        self.numbers.pop(engine, None)
        self.whole_at = None
        for held in self.staged.values():
            held.pop(engine, None)

    def relist(self) -> None:
        """Whoever is known now is on a new list."""
        self.keys_number, self.listed_too_many = self.lists.next(), False

    def keys(self) -> tuple[str, ...]:
        return tuple(sorted({a.key for a in self.addresses.values() if a.key}))

    def admitted(self, engine: Engine) -> bool:
        """The vault and all shards admit this engine's key."""
        number = self.numbers.get(engine)
        if number is None or self.vault_number < number:
            return False
        return all(r.peers >= number for r in self.replicas.values())

    def complete(self, update: UpdateId, places: list[ShardPlace]) -> bool:
        """Every replica of every shard holds this announced update."""
        held = self.staged.get(update)
        if held is None or len(held) < len(places):
            return False
        return update in self.updates and all((n, p.shard) in held for p in places for n in replica_nodes(p))

    def squared_norm(self, update: UpdateId, places: list[ShardPlace]) -> float:
        held = self.staged[update]
        return sum(held[p.primary, p.shard].squared_norm for p in places)

    def finite(self, update: UpdateId) -> bool:
        return self.updates[update].report.finite and all(h.finite for h in self.staged[update].values())

    def stage(self, engine: Engine, held: HeldUpdate) -> bool:
        """Note what a replica holds; True if that is new."""
        known = self.staged.setdefault(held.update, {})
        if known.get(engine) == held:
            return False
        known[engine] = held
        self.fresh[held.update] = None
        return True

    def refuse(self, update: UpdateId) -> None:
        """Its worker is told to forget it, so it can never be accepted: the newest refusals are remembered."""
        self.refused[update] = None
        if len(self.refused) > REFUSED_MAX:
            del self.refused[next(iter(self.refused))]

    def announce(self, flight: InFlight) -> None:
        self.turnover += 1
        self.updates[flight.report.update] = flight
        self.fresh[flight.report.update] = None
        self.sent.setdefault(flight.node, {})[flight.report.update] = flight

    def sent_by(self, node: NodeId) -> Collection[InFlight]:
        """Updates that this machine has announced and that are not decided."""
        return self.sent.get(node, {}).values()

    def drop(self, update: UpdateId) -> None:
        self.turnover += 1
        flight = self.updates.pop(update, None)
        if flight is not None:
            del self.sent[flight.node][update]
        self.staged.pop(update, None)
        self.whole.pop(update, None)

    def routes(self, places: list[ShardPlace]) -> tuple[Route, ...]:
        """Where every shard is, or () while one of them is not known."""
        found = []
        for place in places:
            primary = self.addresses.get((place.primary, place.shard))
            if primary is None:
                return ()
            found.append(Route(place.shard, place.blocks, primary))
        if self.known_routes != tuple(found):
            self.known_routes = tuple(found)
        return self.known_routes

    def ready_workers(self) -> list[NodeId]:
        return sorted(n for n, w in self.workers.items() if w.ready and not w.hung)

    def fastest(self) -> float:
        """Of all workers, in tokens/s; 0 while nothing was measured."""
        return max([w.tokens_per_s for w in self.workers.values()], default=0.0)

    def speeds(self) -> dict[NodeId, float]:
        return {n: w.tokens_per_s for n, w in self.workers.items() if w.tokens_per_s > 0}


def replica_nodes(place: ShardPlace) -> tuple[NodeId, ...]:
    return (place.primary, place.backup) if place.backup else (place.primary,)
