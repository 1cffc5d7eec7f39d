"""Which way a connection takes to its peer: directly, or by a detour for peers that cannot be reached.

In `auto` the direct way comes first and is given up by what is measured: a TCP connection that does not stand after
four times what connections usually take (and a lost packet), or a handshake with somebody else. When the detour fails
too it is the direct way's turn again. What was learnt of a host is remembered for a while; a detour that works is
compared with the direct way from time to time. Pure choices over times that are passed in; sockets are `dialling`'s.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from medley.transports.tensors.contract import Peer

Transport = Literal["auto", "direct", "grpc"]
ASKED, SILENT, WRONG = "asked", "silent", "wrong"  # why a detour is taken

LOST_PACKET_S = 1.0  # before TCP sends its first packet again
PATIENCE_MIN_S, PATIENCE_MAX_S = 1.25, 3.0
USUAL_FIRST_S = 0.1
HANDSHAKE_S = 4.0
DETOUR_S = 15.0  # several round trips over two links, and two handshakes of TLS when it is the first
REFUSALS = 3  # of a detour, within moments
REMEMBERED_S = 300.0
SUPPOSED_S = 60.0
KNOWN_MAX = 4096
PROBE_FIRST_S, PROBE_LAST_S = 60.0, 600.0


@dataclass(frozen=True, slots=True)
class Detour:
    """`proxy` is the host:port of a SOCKS5 proxy on loopback; `named(peer, why)` the endpoint to ask it for."""

    proxy: str
    named: Callable[[Peer, str], str]


@dataclass(frozen=True, slots=True)
class Emulated:
    """A bad link on purpose: the SOCKS5 proxy that direct connections pass; `secret` is its name and password."""

    proxy: str
    secret: str


@dataclass(frozen=True, slots=True)
class Ways:
    """What this machine may use. Without a detour every way is direct."""

    transport: Transport = "auto"
    detour: Detour | None = None
    emulated: Emulated | None = None


@dataclass(slots=True)
class Way:
    """The way of one connection: since when it is tried, when TCP stood, what became of it. `why`: of a detour."""

    why: str
    since: float
    met_at: float = 0.0
    stood: bool = False
    wrong: bool = False
    refusals: int = 0

    @property
    def relayed(self) -> bool:
        return bool(self.why)

    def again(self, now: float) -> None:
        """The connection was lost, or is made anew."""
        self.since, self.met_at, self.refusals = now, 0.0, 0


@dataclass(slots=True)
class _Known:
    """The direct way failed, for this reason; until when that counts, and when to look again."""

    why: str
    until: float
    probe_s: float = PROBE_FIRST_S
    probe_at: float = 0.0


@dataclass(slots=True)
class Choice:
    """What one plane has learnt."""

    ways: Ways
    usual_s: float = USUAL_FIRST_S
    relayed: dict[str, _Known] = field(default_factory=dict)  # by host: the detour reached an engine there
    supposed: dict[str, _Known] = field(default_factory=dict)  # by endpoint: nothing has reached it yet

    def first(self, peer: Peer, now: float) -> Way:
        """The way to begin with."""
        if self.ways.detour is None or self.ways.transport == "direct":
            return Way("", now)
        if self.ways.transport == "grpc":
            return Way(ASKED, now)
        known = self.supposed.get(peer.endpoint) or self.relayed.get(_host(peer))
        return Way(known.why if known is not None and now < known.until else "", now)

    def other(self, peer: Peer, way: Way, now: float) -> Way | None:
        """The way to try now instead, or None while this one deserves more time."""
        if self.ways.detour is None or self.ways.transport != "auto" or now - way.since < self._patience_s(way):
            return None
        if way.relayed:
            self.supposed.pop(peer.endpoint, None)
            return Way("", now)
        # The next call need not find out again. Of this engine only: its machine may be well, and the engine dead.
        why = WRONG if way.wrong or way.met_at else SILENT
        _keep(self.supposed, peer.endpoint, _Known(why, now + SUPPOSED_S))
        return Way(why, now)

    def refused(self, way: Way) -> None:
        """Connecting failed and will be tried again. A detour means it; a machine may be about to come back."""
        if way.relayed:
            way.refusals += 1

    def met(self, way: Way, now: float) -> None:
        """TCP stands."""
        way.met_at = now
        if not way.relayed:
            # quick to learn that connections are slow, slow to forget it
            took_s = now - way.since
            self.usual_s = max(took_s, 0.9 * self.usual_s + 0.1 * took_s)

    def stands(self, peer: Peer, way: Way, now: float) -> None:
        """The handshake is done."""
        way.stood, way.wrong = True, False
        self.supposed.pop(peer.endpoint, None)
        if not way.relayed:
            self.relayed.pop(_host(peer), None)
        elif self.ways.transport == "auto":
            probe_s = self.relayed[_host(peer)].probe_s if _host(peer) in self.relayed else PROBE_FIRST_S
            _keep(self.relayed, _host(peer), _Known(way.why, now + REMEMBERED_S, probe_s, now + probe_s))

    def worth_a_probe(self, peer: Peer, way: Way, now: float) -> bool:
        """Whether to see if a relayed peer can be reached directly by now; asking counts as having tried."""
        if not way.relayed or self.ways.transport != "auto":
            return False
        known = self.relayed.get(_host(peer))
        if known is None:  # another connection to that machine stands directly; this one was not tried in vain just now
            supposed = self.supposed.get(peer.endpoint)
            return supposed is None or now >= supposed.until
        if now < known.probe_at:
            return False
        known.probe_s = min(2 * known.probe_s, PROBE_LAST_S)
        known.probe_at, known.until = now + known.probe_s, now + REMEMBERED_S
        return True

    def _patience_s(self, way: Way) -> float:
        if way.wrong or way.refusals >= REFUSALS:
            return 0.0
        if way.relayed:
            return DETOUR_S
        if way.met_at:
            return HANDSHAKE_S
        if way.stood:
            return PATIENCE_MAX_S
        return min(PATIENCE_MAX_S, max(PATIENCE_MIN_S, LOST_PACKET_S + 4 * self.usual_s))


def _keep(known: dict[str, _Known], key: str, one: _Known) -> None:
    if len(known) >= KNOWN_MAX:
        known.clear()
    known[key] = one


def _host(peer: Peer) -> str:
    return peer.endpoint.rpartition(":")[0]
