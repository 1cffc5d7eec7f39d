"""The links of a world: two for each pair of nodes, one for control and one for tensors.

A machine's access link has conditions for each class of traffic. A control message waits for its turn in a stream that
keeps order; loss costs it retransmission time, an outage its stream's life. A transfer shares its sender's uplink and
its receiver's downlink with what else moves there, never exceeds what its TCP stream makes of that path
(`policies.tcp`, drawn for each transfer; the window stays warm between them; transfers of one size on alike paths share
their draws once there are many), and after an interruption goes on from the last chunk that was acknowledged, as the
tensor plane does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from math import ceil, inf, log, log2
from random import Random

from medley.policies.tcp import Stream, steady_bytes_per_s, stream, transfer_s
from medley.protocol.conditions import MSS_NBYTES, PACKET_NBYTES, Conditions, goodput_bytes_per_s, path, rto_s
from medley.protocol.ids import NodeId
from medley.runtimes.simulated.flows import Flow, Pipe, Sharing
from medley.runtimes.simulated.kernel import MS, Kernel, S

LAN_NS = 100_000  # one way where no conditions are set
LOOPBACK_BYTES_PER_S = 2e9
WINDOW_NBYTES = 10 * MSS_NBYTES  # TCP's initial window (RFC 6928): less than that needs no ramp
CHUNK_NBYTES = 1 << 20  # what a broken transfer may have to send again, at most
STALLED_NS = 10 * S  # a transfer that moves nothing for so long is given up
DRAWS = 256  # of transfers of one size on alike paths, after which one of them is taken again: drawing costs flights
POOLS_MAX = 1024  # sizes of transfers on alike paths, and kinds of paths
EVERYONE = "*"


@dataclass(slots=True)
class Access:
    """One machine's link to everybody."""

    name: NodeId
    conditions: Conditions
    overrides: dict[str, Conditions]
    random: Random
    phase_ns: int
    up: Pipe
    down: Pipe
    cycling: bool = False

    def of(self, kind: str) -> Conditions:
        return self.overrides.get(kind, self.conditions) if self.overrides else self.conditions


@dataclass(slots=True, eq=False)
class Transfer:
    """One object on its way from one engine to another. `done` is told whether it arrived."""

    source: NodeId
    target: NodeId
    nbytes: int
    done: Callable[[bool], None]
    ends: tuple[str, ...] = ()
    began_ns: int = 0
    bytes_per_s: float = inf  # what its TCP stream reaches, had it the links for itself
    flow: Flow | None = None
    over: bool = False
    stalls: int = 0


@dataclass(slots=True)
class _Path:
    """What one machine's messages and streams to another meet."""

    rtt_ns: int
    jitter_ns: float
    loss: float
    timeout_ns: int  # a stream's first retransmission timeout
    bytes_per_s: float  # of the narrower end
    stream_bytes_per_s: float  # what one TCP stream reaches, before anybody shares the link
    cycles: tuple[tuple[Access, Conditions], ...]
    plain: bool  # nothing here depends on chance or time
    conditions: Conditions
    random: Random  # the sender's
    stream: Stream | None = None  # of transfers, where anything but bandwidth is in their way; its window stays warm
    draws: dict[int, list[float]] = field(default_factory=dict)  # by size: what transfers on alike paths took


class Network:
    """Where every machine hangs, and what moves."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.sharing = Sharing(kernel)
        self.accesses: dict[NodeId, Access] = {}
        self.blocked: set[tuple[NodeId, NodeId]] = set()  # (from, to); EVERYONE stands for all
        self.transfers: dict[Transfer, None] = {}
        self._paths: dict[tuple[NodeId, NodeId, str], _Path] = {}
        self._draws: dict[Conditions, dict[int, list[float]]] = {}

    def add(self, name: NodeId, conditions: Conditions, overrides: dict[str, Conditions] | None = None) -> None:
        """Hang a machine in, or change what its link does."""
        tensors = (overrides or {}).get("ps_sync", conditions)
        random = self.kernel.random(f"link {name}")
        cycle_ns = int((conditions.up_s + conditions.down_s) * S)
        phase_ns = random.randrange(cycle_ns) if cycle_ns else 0
        up, down = _pipe(f"{name} up", tensors.up_bytes_per_s), _pipe(f"{name} down", tensors.down_bytes_per_s)
        self.accesses[name] = Access(name, conditions, dict(overrides or {}), random, phase_ns, up, down)
        self._paths = {key: way for key, way in self._paths.items() if name not in key[:2]}

    def remove(self, name: NodeId) -> None:
        self.accesses.pop(name, None)
        self._paths = {key: way for key, way in self._paths.items() if name not in key[:2]}

    # -- messages ---------------------------------------------------------------------------------------------

    def round_trip_ns(self, source: NodeId, target: NodeId, kind: str = "task") -> int:
        return self._path(source, target, kind).rtt_ns

    def occupied_ns(self, source: NodeId, target: NodeId, kind: str, nbytes: int) -> int:
        """For how long so many bytes take what one TCP stream reaches, so that the next ones wait."""
        return int(nbytes / self._path(source, target, kind).stream_bytes_per_s * S)

    def delay_ns(self, source: NodeId, target: NodeId, kind: str, nbytes: int) -> int:
        """Until a message of a reliable stream is there, lost packets and closed windows included."""
        way = self._path(source, target, kind)
        delay = way.rtt_ns / 2 + nbytes / way.bytes_per_s * S
        if way.plain:
            return int(delay)
        random = way.random
        if way.jitter_ns:
            # Mean 0, standard deviation as the conditions say, and the long right tail that queues have.
            delay += way.jitter_ns * (-log(1.0 - random.random()) - 1.0)  # an exponential distribution of mean 1
            delay = delay if delay > 0.0 else 0.0
        loss = way.loss if nbytes <= MSS_NBYTES else 1 - (1 - way.loss) ** ceil(nbytes / MSS_NBYTES)
        lost = random.random() < loss
        return int(delay) + (self._resent_ns(way, random, lost) if lost or way.cycles else 0)

    def _resent_ns(self, way: _Path, random: Random, lost: bool) -> int:
        """What retransmissions cost: a tail loss probe first (RFC 8985), then timeouts that double."""
        waited, timeout = 0, way.timeout_ns
        probe = min(timeout, max(10 * MS, 2 * way.rtt_ns))
        while lost or not self._carries(way, self.kernel.now + waited):
            waited += probe or timeout
            probe, timeout = 0, min(2 * timeout, 60 * S) if not probe else timeout
            lost = random.random() < way.loss
        return waited

    # -- outages ----------------------------------------------------------------------------------------------

    def block(self, source: NodeId, target: NodeId) -> None:
        """Nothing gets from here to there any more. EVERYONE stands for all."""
        self.blocked.add((source, target))
        self._reconsider()

    def unblock(self, source: NodeId, target: NodeId) -> None:
        self.blocked.discard((source, target))
        self._reconsider()

    def is_blocked(self, source: NodeId, target: NodeId) -> bool:
        if not self.blocked:
            return False
        return not self.blocked.isdisjoint(((source, target), (source, EVERYONE), (EVERYONE, target)))

    def _carries(self, way: _Path, at_ns: int) -> bool:
        return all(_is_up(access, c, at_ns) for access, c in way.cycles)

    # -- transfers --------------------------------------------------------------------------------------------

    def transfer(
        self, source: NodeId, target: NodeId, nbytes: int, done: Callable[[bool], None], ends: tuple[str, ...] = ()
    ) -> Transfer:
        """Move `nbytes` of tensors. `ends`: the sockets between which; `end_socket` breaks what touches one."""
        nbytes = max(1, nbytes)  # a job that brings its own data fetches none, but asks
        transfer = Transfer(source, target, nbytes, done, ends, self.kernel.now)
        self.transfers[transfer] = None
        if source == target:
            self.kernel.after(int(nbytes / LOOPBACK_BYTES_PER_S * S) + LAN_NS, self._over, transfer, True)
            return transfer
        way = self._path(source, target, "ps_sync")
        if way.stream is not None:
            first_ns, rate = self._drawn(way, way.stream, nbytes)
        else:
            rate = way.stream_bytes_per_s
            first_ns = self.delay_ns(source, target, "ps_sync", 0) + _ramp_ns(way.rtt_ns, nbytes, rate)
        transfer.bytes_per_s = rate
        small = rate > 0 and nbytes <= WINDOW_NBYTES and not way.cycles and not self.blocked
        if small or rate == inf:
            self.kernel.after(first_ns + int(nbytes / rate * S), self._over, transfer, True)
        else:
            self.kernel.after(first_ns, self._begin, transfer)
        return transfer

    def _drawn(self, way: _Path, stream: Stream, nbytes: int) -> tuple[int, float]:
        """When the first byte of a transfer arrives, and the rate of all that TCP makes of it on links of its own."""
        draws = self._pool(way, nbytes)
        if len(draws) < DRAWS:
            now_s, conditions = self.kernel.now / S, way.conditions
            took_s = transfer_s(stream, now_s, nbytes, lambda: steady_bytes_per_s(conditions, "up"))
            draws.append(took_s)
        else:
            took_s = draws[int(way.random.random() * DRAWS)]
        first_s = min(took_s, way.rtt_ns / 2 / S)
        return int(first_s * S), max(1, nbytes) / max(took_s - first_s, 1e-9)

    def _pool(self, way: _Path, nbytes: int) -> list[float]:
        """What was drawn so far for transfers of this size; nothing where the time of day matters."""
        if way.conditions.down_s > 0:
            return []
        found = way.draws.get(nbytes)
        if found is None:
            if len(way.draws) >= POOLS_MAX:
                way.draws.clear()
            found = way.draws[nbytes] = []
        return found

    def end_socket(self, end: str) -> None:
        """This socket is closed: what moves to or from it breaks."""
        for transfer in [t for t in self.transfers if end in t.ends]:
            self.fail(transfer)

    def fail(self, transfer: Transfer) -> None:
        if not transfer.over:
            self._over(transfer, False)

    def interrupt(self, transfer: Transfer, for_ns: int) -> None:
        """The connection breaks and is made anew; what was not acknowledged is sent again."""
        flow = transfer.flow
        if flow is not None and not transfer.over:
            self.sharing.limit(flow, 0.0, self._resume_at(transfer, flow))
            self.kernel.after(for_ns, self._reconsider_one, transfer)

    def _begin(self, transfer: Transfer) -> None:
        if transfer.over:
            return
        a, b = self.accesses.get(transfer.source), self.accesses.get(transfer.target)
        if a is None or b is None:
            self._over(transfer, False)
            return
        pipes = tuple(p for p in (a.up, b.down) if p.bytes_per_s < inf or _cycles(a, b))
        transfer.flow = self.sharing.begin(pipes, transfer.nbytes, self._limit(transfer), lambda: self._left(transfer))
        for access in (a, b):
            self._cycle(access)
        if transfer.flow.limit == 0:
            self._stalled(transfer, transfer.nbytes)

    def _limit(self, transfer: Transfer) -> float:
        if self.is_blocked(transfer.source, transfer.target):
            return 0.0
        way = self._path(transfer.source, transfer.target, "ps_sync")
        return transfer.bytes_per_s if self._carries(way, self.kernel.now) else 0.0

    def _left(self, transfer: Transfer) -> None:
        self._over(transfer, True)

    def _over(self, transfer: Transfer, arrived: bool) -> None:
        if transfer.over:
            return
        transfer.over = True
        self.transfers.pop(transfer, None)
        if transfer.flow is not None and not arrived:
            self.sharing.end(transfer.flow)
        transfer.done(arrived)

    def _reconsider(self) -> None:
        for transfer in list(self.transfers):
            self._reconsider_one(transfer)

    def _reconsider_one(self, transfer: Transfer) -> None:
        """A way was closed or opened: stop, or go on from the last acknowledged chunk."""
        flow = transfer.flow
        if flow is None or transfer.over:
            return
        limit = self._limit(transfer)
        if limit == 0 and flow.limit > 0:
            self.sharing.limit(flow, 0.0, self._resume_at(transfer, flow))
        elif limit > 0 and flow.limit == 0:
            self.sharing.limit(flow, limit)
        if limit == 0:
            self._stalled(transfer, flow.left)

    def _resume_at(self, transfer: Transfer, flow: Flow) -> float:
        left = self.sharing.left(flow)
        return min(float(transfer.nbytes), ceil(left / CHUNK_NBYTES) * CHUNK_NBYTES)

    def _stalled(self, transfer: Transfer, left: float) -> None:
        transfer.stalls += 1
        self.kernel.after(STALLED_NS, self._give_up, transfer, left, transfer.stalls)

    def _give_up(self, transfer: Transfer, left: float, stall: int) -> None:
        flow = transfer.flow
        if flow is not None and not transfer.over and stall == transfer.stalls and flow.limit == 0:
            self._over(transfer, False)

    def _cycle(self, access: Access) -> None:
        """While something moves at a link that comes and goes, look again whenever it does."""
        conditions = access.of("ps_sync")
        if conditions.down_s <= 0 or access.cycling or not (access.up.flows or access.down.flows):
            return
        access.cycling = True
        self.kernel.after(_until_change_ns(access, conditions, self.kernel.now), self._changed, access)

    def _changed(self, access: Access) -> None:
        access.cycling = False
        for transfer in [t for t in self.transfers if access.name in (t.source, t.target)]:
            self._reconsider_one(transfer)
        self._cycle(access)

    # -- paths ------------------------------------------------------------------------------------------------

    def _path(self, source: NodeId, target: NodeId, kind: str) -> _Path:
        found = self._paths.get((source, target, kind))
        if found is None:
            if len(self._paths) > 200_000:
                self._paths.clear()
            found = self._paths[source, target, kind] = self._make_path(source, target, kind)
        return found

    def _make_path(self, source: NodeId, target: NodeId, kind: str) -> _Path:
        a, b = self.accesses[source], self.accesses[target]
        here, there = a.of(kind), b.of(kind)
        both = path(here, there)
        cycles = tuple((access, c) for access, c in ((a, here), (b, there)) if c.down_s > 0)
        plain = not (both.loss or both.jitter_ms or cycles)
        stream = None
        if kind == "ps_sync" and not plain:
            both, cycles, stream = _streamed(both, cycles, a.random)
        if len(self._draws) >= POOLS_MAX:
            self._draws.clear()
        return _Path(
            max(2 * LAN_NS, int(both.rtt_ms * MS)),
            both.jitter_ms * MS,
            both.loss,
            int(rto_s(both) * S),
            both.up_bytes_per_s * MSS_NBYTES / PACKET_NBYTES or inf,
            goodput_bytes_per_s(both),
            cycles,
            plain,
            both,
            a.random,
            stream,
            self._draws.setdefault(both, {}) if stream is not None else {},
        )


Cycles = tuple[tuple[Access, Conditions], ...]


def _streamed(both: Conditions, cycles: Cycles, random: Random) -> tuple[Conditions, Cycles, Stream]:
    """A path's TCP stream. Outages that it lives through are its own business: it waits for a time-out after each."""
    if len(cycles) == 1 and cycles[0][1].down_s * S < STALLED_NS:
        ((access, c),) = cycles
        both = replace(both, up_s=c.up_s, down_s=c.down_s)
        return both, (), stream(both, "up", random, access.phase_ns / S)
    return both, cycles, stream(both, "up", random)


def _pipe(name: str, bytes_per_s: float) -> Pipe:
    """Of payload: packets have headers."""
    return Pipe(name, bytes_per_s * MSS_NBYTES / PACKET_NBYTES or inf)


def _cycles(a: Access, b: Access) -> bool:
    return a.of("ps_sync").down_s > 0 or b.of("ps_sync").down_s > 0


def _is_up(access: Access, conditions: Conditions, at_ns: int) -> bool:
    cycle_ns = int((conditions.up_s + conditions.down_s) * S)
    return (at_ns + access.phase_ns) % cycle_ns < conditions.up_s * S


def _until_change_ns(access: Access, conditions: Conditions, at_ns: int) -> int:
    cycle_ns = int((conditions.up_s + conditions.down_s) * S)
    place = (at_ns + access.phase_ns) % cycle_ns
    up_ns = int(conditions.up_s * S)
    return (up_ns - place if place < up_ns else cycle_ns - place) + 1


def _ramp_ns(rtt_ns: int, nbytes: int, rate: float) -> int:
    """What slow start costs beyond the time that the bytes take anyway: the window doubles once a round trip."""
    if rate == inf:
        return int(rtt_ns * log2(1 + nbytes / WINDOW_NBYTES)) if nbytes > WINDOW_NBYTES else 0
    window = min(float(nbytes), rate * rtt_ns / S)
    if window <= WINDOW_NBYTES:
        return 0
    return max(0, int(rtt_ns * log2(1 + window / WINDOW_NBYTES) - window / rate * S))
