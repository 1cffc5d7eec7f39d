"""Connections that we open, and the calls that use them: dialling, noticing loss, dialling again, giving up."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import zmq
from zmq.utils.monitor import parse_monitor_message

from medley.transports.tensors.contract import Peer, Refused
from medley.transports.tensors.curve import Curve
from medley.transports.tensors.links import IDLE_LINK_S, Dialled, dial
from medley.transports.tensors.outbound import Attempt, Call
from medley.transports.tensors.transfers import Host


class Dialling:
    """One connection a peer, any number of calls on it. Lives on the I/O thread."""

    def __init__(self, host: Host, context: zmq.Context[zmq.Socket[bytes]], identity: Curve | None) -> None:
        self._host, self._context, self._identity = host, context, identity
        self._dialled: dict[Peer, Dialled] = {}
        self._calls: dict[Call, None] = {}
        self._revoked: set[bytes] = set()
        self._next_transfer = 1

    def connections(self) -> Iterator[Dialled]:
        return iter(list(self._dialled.values()))

    def call(self, peer: Peer, make: Callable[[Attempt], Call], now: float) -> Call:
        """Start a call, opening a connection where none is. `zmq.ZMQError` when no socket can be had."""
        call = make(Attempt(self._dial(peer, now), self._host, now, now))
        if peer.public_key in self._revoked:
            call.fail(Refused("this peer's key was revoked"))
        else:
            self._calls[call] = None
            self.begin(now)
        return call

    def cancel(self, calls: Iterable[Call]) -> None:
        for call in calls:
            call.fail(Refused("cancelled"))
            self._calls.pop(call, None)

    def revoke(self, key: bytes) -> None:
        """End the calls to this key's peers and hang up on them."""
        self._revoked.add(key)
        for call in [one for one in self._calls if one.attempt.dialled.peer.public_key == key]:
            call.fail(Refused("this peer's key was revoked"))
            self._calls.pop(call, None)
        for peer in [peer for peer in self._dialled if peer.public_key == key]:
            self._dialled.pop(peer).close()

    def admit(self, key: bytes) -> None:
        self._revoked.discard(key)

    def begin(self, now: float) -> None:
        """Start every call whose connection stands and that has no attempt under way."""
        for call in [call for call in self._calls if call.attempt.finished]:
            del self._calls[call]
        for call in self._calls:
            if call.attempt.wanted(now):
                self._next_transfer += 1
                call.begin(self._next_transfer, now)

    def tick(self, now: float) -> None:
        for call in list(self._calls):
            call.tick(now)
        used = {call.attempt.dialled.peer for call in self._calls if not call.attempt.finished}
        for peer, dialled in list(self._dialled.items()):
            self._tick_connection(dialled, peer in used, now)

    def end(self, error: Exception) -> None:
        """Fail every call."""
        for call in list(self._calls):
            call.fail(error)

    def close(self) -> None:
        for dialled in self._dialled.values():
            dialled.close()

    def watch(self, dialled: Dialled, now: float) -> None:
        """Read what the monitor of a connection has to tell."""
        try:
            while True:
                event = parse_monitor_message(dialled.monitor.recv_multipart(zmq.DONTWAIT))["event"]
                self._happened(dialled, event, now)
        except zmq.Again:
            return

    def _dial(self, peer: Peer, now: float) -> Dialled:
        dialled = self._dialled.get(peer)
        if dialled is None:
            dialled = dial(self._context, peer, self._identity, self._host.limits, self._host.counters)
            dialled.link.heard_at = now
            self._dialled[peer] = dialled
        return dialled

    def _happened(self, dialled: Dialled, event: int, now: float) -> None:
        match event:
            case zmq.EVENT_HANDSHAKE_SUCCEEDED:
                dialled.up, dialled.remake_at, dialled.failures = True, None, 0
                dialled.why = "it does not answer"
            case zmq.EVENT_DISCONNECTED:
                self._lose(dialled, now)
                dialled.why = "the connection is lost and does not come back"
            case _:
                dialled.failures += 1
                dialled.remake_at = now + min(1.0, 0.1 * 2**dialled.failures)
                dialled.why = "the handshake fails (is our key admitted there, and is theirs the right one?)"

    def _lose(self, dialled: Dialled, now: float) -> None:
        if dialled.up:
            self._host.counters["connections_lost"] += 1
        dialled.up = False
        dialled.link.outbox.clear()
        for transfer in list(dialled.link.transfers.values()):
            transfer.cut(now)

    def _tick_connection(self, dialled: Dialled, used: bool, now: float) -> None:
        dialled.link.flush()
        silence_s = now - dialled.link.heard_at
        dead = dialled.link.lost or (dialled.suspect and silence_s > self._host.limits.floor_s)
        dialled.suspect = False
        if dialled.remake_at is not None and now >= dialled.remake_at and not dialled.up:
            self._remake(dialled)
        elif dead or (not used and silence_s > IDLE_LINK_S):
            self._lose(dialled, now)
            if used:
                self._remake(dialled)
            else:
                self._dialled.pop(dialled.peer).close()

    def _remake(self, dialled: Dialled) -> None:
        """A socket that ZAP refused never tries again by itself: make it anew for the calls that wait."""
        fresh = dial(self._context, dialled.peer, self._identity, self._host.limits, self._host.counters)
        dialled.close()
        fresh.link.pace, fresh.link.heard_at = dialled.link.pace, dialled.link.heard_at
        dialled.link, dialled.monitor, dialled.remake_at = fresh.link, fresh.monitor, None
