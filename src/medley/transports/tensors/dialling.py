"""Connections that we open, one a peer: dialling, noticing loss, dialling again, turning to another way, hanging up.

What they are for is their tenant's affair: calls (`calls.py`) and posts (`posts.py`) have connections of their own, so
that a post never waits behind an object.
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from typing import Protocol

import zmq
from zmq.utils.monitor import parse_monitor_message

from medley.transports.tensors.contract import Peer
from medley.transports.tensors.curve import Curve
from medley.transports.tensors.links import IDLE_LINK_S, Dialled, dial
from medley.transports.tensors.transfers import Host
from medley.transports.tensors.ways import Choice, Way


class Tenant(Protocol):
    """Whoever uses the connections."""

    def stands(self, dialled: Dialled) -> None:
        """Its socket can be used."""

    def falls(self, dialled: Dialled) -> None:
        """Its socket can no longer be used, and may be closed when this returns."""

    def breaks(self, peer: Peer) -> None:
        """A connection that stood was lost, and was not hung up by us."""

    def turns(self, dialled: Dialled, now: float) -> None:
        """The peer is now tried by detour, which deserves its own time."""


class Dialling:
    """One connection a peer. Lives on the I/O thread."""

    def __init__(
        self,
        host: Host,
        context: zmq.Context[zmq.Socket[bytes]],
        identity: Curve | None,
        choice: Choice,
        tenant: Tenant,
        *,
        deaf: bool,
    ) -> None:
        self._host, self._context, self._identity = host, context, identity
        self._choice, self._tenant, self._deaf = choice, tenant, deaf
        self._dialled: dict[Peer, Dialled] = {}
        self._probes: dict[Peer, Dialled] = {}  # direct connections beside relayed ones, to see whether they stand

    def connections(self) -> Iterator[Dialled]:
        return iter([*self._dialled.values(), *self._probes.values()])

    def connected(self, peer: Peer) -> bool:
        """Any thread may ask."""
        dialled = self._dialled.get(peer)
        return dialled is not None and dialled.up

    def __contains__(self, peer: Peer) -> bool:
        return peer in self._dialled

    def dial(self, peer: Peer, now: float) -> Dialled:
        """The connection to the peer, which may not stand yet. `zmq.ZMQError` when no socket can be had."""
        dialled = self._dialled.get(peer)
        if dialled is None:
            dialled = self._dialled[peer] = self._connect(peer, self._choice.first(peer, now), now)
        return dialled

    def revoke(self, key: bytes) -> None:
        """Hang up on this key's peers."""
        for peer in [peer for peer in self._dialled if peer.public_key == key]:
            self._hang_up(peer)

    def tick(self, used: Container[Peer], now: float) -> None:
        """`used`: the peers for whom there is something to do."""
        for peer, dialled in list(self._dialled.items()):
            self._tick_connection(dialled, peer in used, now)

    def close(self) -> None:
        for peer in list(self._dialled):
            self._hang_up(peer)

    def watch(self, dialled: Dialled, now: float) -> None:
        """Read what the monitor of a connection has to tell."""
        try:
            while True:
                event = parse_monitor_message(dialled.monitor.recv_multipart(zmq.DONTWAIT))["event"]
                self._happened(dialled, event, now)
        except zmq.Again:
            return

    def _connect(self, peer: Peer, way: Way, now: float) -> Dialled:
        ways = self._choice.ways
        dialled = dial(
            self._context, peer, self._identity, self._host.limits, self._host.counters, way, ways, self._deaf
        )
        dialled.link.heard_at = dialled.used_at = now
        return dialled

    def _hang_up(self, peer: Peer) -> None:
        dialled = self._dialled.pop(peer)
        self._tenant.falls(dialled)
        dialled.close()
        probe = self._probes.pop(peer, None)
        if probe is not None:
            probe.close()

    def _happened(self, dialled: Dialled, event: int, now: float) -> None:
        match event:
            case zmq.EVENT_CONNECTED:
                self._choice.met(dialled.way, now)
            case zmq.EVENT_CONNECT_RETRIED:
                self._choice.refused(dialled.way)
            case zmq.EVENT_HANDSHAKE_SUCCEEDED:
                dialled.up, dialled.remake_at, dialled.failures = True, None, 0
                dialled.why = "it does not answer"
                self._stands(dialled, now)
            case zmq.EVENT_DISCONNECTED:
                self._break(dialled, now)
                dialled.why = "the connection is lost and does not come back"
            case _:
                dialled.failures += 1
                dialled.remake_at = now + min(1.0, 0.1 * 2**dialled.failures)
                dialled.why = "the handshake fails (is our key admitted there, and is theirs the right one?)"
                # Whoever refuses our key is the right one; whoever cannot answer at all is somebody else.
                dialled.way.wrong = event != zmq.EVENT_HANDSHAKE_FAILED_AUTH

    def _stands(self, dialled: Dialled, now: float) -> None:
        self._choice.stands(dialled.peer, dialled.way, now)
        self._host.counters["connections_relayed" if dialled.way.relayed else "connections_direct"] += 1
        if self._probes.get(dialled.peer) is dialled:
            relayed = self._dialled[dialled.peer]
            self._lose(relayed, now)
            self._replace(relayed, self._probes.pop(dialled.peer))
        else:
            self._tenant.stands(dialled)

    def _break(self, dialled: Dialled, now: float) -> None:
        stood = dialled.up and self._dialled.get(dialled.peer) is dialled
        self._lose(dialled, now)
        if stood:
            self._tenant.breaks(dialled.peer)

    def _lose(self, dialled: Dialled, now: float) -> None:
        if dialled.up:
            self._host.counters["connections_lost"] += 1
            self._tenant.falls(dialled)
        dialled.up = False
        dialled.way.again(now)
        dialled.link.outbox.clear()
        for transfer in list(dialled.link.transfers.values()):
            transfer.cut(now)

    def _tick_connection(self, dialled: Dialled, used: bool, now: float) -> None:
        dialled.link.flush()
        silence_s = now - dialled.link.heard_at
        dead = dialled.link.lost or (dialled.suspect and silence_s > self._host.limits.floor_s)
        dialled.suspect = False
        if used:
            dialled.used_at = now
        other = None if dialled.up or not used else self._choice.other(dialled.peer, dialled.way, now)
        if other is not None:
            self._turn(dialled, other, now)
        elif dialled.remake_at is not None and now >= dialled.remake_at and not dialled.up:
            self._remake(dialled, now)
        elif dead:
            self._break(dialled, now)
            if used:
                self._remake(dialled, now)
            else:
                self._hang_up(dialled.peer)
        elif min(silence_s, now - dialled.used_at) > IDLE_LINK_S:
            self._lose(dialled, now)
            self._hang_up(dialled.peer)
        elif used and dialled.up:
            self._tick_probe(dialled, now)

    def _turn(self, dialled: Dialled, other: Way, now: float) -> None:
        """Try the other way. A detour gets its own time; the way back does not, or no call would ever end."""
        self._replace(dialled, self._connect(dialled.peer, other, now))
        if other.relayed:
            self._tenant.turns(dialled, now)

    def _tick_probe(self, dialled: Dialled, now: float) -> None:
        """A relayed peer is tried directly from time to time; whichever connection stands then is the one."""
        probe = self._probes.get(dialled.peer)
        if probe is not None and self._choice.other(probe.peer, probe.way, now) is not None:
            self._probes.pop(dialled.peer).close()
        elif probe is None and self._choice.worth_a_probe(dialled.peer, dialled.way, now):
            self._probes[dialled.peer] = self._connect(dialled.peer, Way("", now), now)

    def _remake(self, dialled: Dialled, now: float) -> None:
        """A socket that ZAP refused never tries again by itself: make it anew for those who wait."""
        fresh = self._connect(dialled.peer, dialled.way, now)
        fresh.link.pace, fresh.link.heard_at = dialled.link.pace, dialled.link.heard_at
        self._replace(dialled, fresh)

    def _replace(self, dialled: Dialled, fresh: Dialled) -> None:
        """Whoever uses `dialled` goes on over another socket."""
        self._tenant.falls(dialled)
        dialled.close()
        dialled.link, dialled.monitor, dialled.way = fresh.link, fresh.monitor, fresh.way
        dialled.up, dialled.remake_at = fresh.up, None
        if dialled.up:
            self._tenant.stands(dialled)
