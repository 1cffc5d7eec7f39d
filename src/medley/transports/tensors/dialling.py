"""Connections that we open, and the calls and posts on them: dialling, noticing loss, dialling again, giving up."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import zmq
from zmq.utils.monitor import parse_monitor_message

from medley.transports.tensors.contract import Peer, Refused
from medley.transports.tensors.curve import Curve
from medley.transports.tensors.links import IDLE_LINK_S, Dialled, dial
from medley.transports.tensors.outbound import Attempt, Call
from medley.transports.tensors.posts import Posts
from medley.transports.tensors.transfers import Host
from medley.transports.tensors.ways import Choice, Way, Ways


class Dialling:
    """One connection a peer, any number of calls and posts on it. Lives on the I/O thread.

    `lost` is told of peers whose connection broke, never of one that was hung up for nobody needed it.
    """

    def __init__(
        self,
        host: Host,
        context: zmq.Context[zmq.Socket[bytes]],
        identity: Curve | None,
        ways: Ways,
        posts: Posts,
        lost: Callable[[Peer], None],
    ) -> None:
        self._host, self._context, self._identity = host, context, identity
        self._posts, self._lost = posts, lost
        self._choice = Choice(ways)
        self._dialled: dict[Peer, Dialled] = {}
        self._probes: dict[Peer, Dialled] = {}  # direct connections beside relayed ones, to see whether they stand
        self._calls: dict[Call, None] = {}
        self._revoked: set[bytes] = set()
        self._next_transfer = 1

    def connections(self) -> Iterator[Dialled]:
        return iter([*self._dialled.values(), *self._probes.values()])

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
            self._hang_up(peer)

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

    def connected(self, peer: Peer) -> bool:
        """Whether a connection to the peer stands. Any thread may ask."""
        dialled = self._dialled.get(peer)
        return dialled is not None and dialled.up

    def pump(self, now: float) -> bool:
        """Send what is posted, opening connections where none are; whether some could not be sent for now."""
        blocked = False
        for peer in self._posts.waiting():
            if peer.public_key in self._revoked:
                self._posts.drop(peer)
                continue
            try:
                dialled = self._dial(peer, now)
            except zmq.ZMQError:  # no socket can be had
                self._posts.drop(peer)
                continue
            if dialled.up:
                dialled.posted_at = now
                blocked |= not self._posts.send(peer, dialled.link.socket)
            else:
                self._posts.unreachable(peer, now)
        return blocked

    def tick(self, now: float) -> None:
        for call in list(self._calls):
            call.tick(now)
        used = {call.attempt.dialled.peer for call in self._calls if not call.attempt.finished}
        used.update(self._posts.waiting())
        self._posts.forget(lambda peer: peer not in self._dialled)
        for peer, dialled in list(self._dialled.items()):
            self._tick_connection(dialled, peer in used, now)

    def end(self, error: Exception) -> None:
        """Fail every call."""
        for call in list(self._calls):
            call.fail(error)

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

    def _dial(self, peer: Peer, now: float) -> Dialled:
        dialled = self._dialled.get(peer)
        if dialled is None:
            dialled = self._dialled[peer] = self._connect(peer, self._choice.first(peer, now), now)
        return dialled

    def _connect(self, peer: Peer, way: Way, now: float) -> Dialled:
        ways = self._choice.ways
        dialled = dial(self._context, peer, self._identity, self._host.limits, self._host.counters, way, ways)
        dialled.link.heard_at = now
        return dialled

    def _hang_up(self, peer: Peer) -> None:
        self._dialled.pop(peer).close()
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
                self._broken(dialled, now)
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

    def _broken(self, dialled: Dialled, now: float) -> None:
        if dialled.up and self._dialled.get(dialled.peer) is dialled:
            self._lost(dialled.peer)
        self._lose(dialled, now)

    def _lose(self, dialled: Dialled, now: float) -> None:
        if dialled.up:
            self._host.counters["connections_lost"] += 1
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
        other = None if dialled.up or not used else self._choice.other(dialled.peer, dialled.way, now)
        if other is not None:
            self._turn(dialled, other, now)
        elif dialled.remake_at is not None and now >= dialled.remake_at and not dialled.up:
            self._remake(dialled, now)
        elif dead or (not used and min(silence_s, now - dialled.posted_at) > IDLE_LINK_S):
            (self._broken if dead else self._lose)(dialled, now)
            if used:
                self._remake(dialled, now)
            else:
                self._hang_up(dialled.peer)
        elif used and dialled.up:
            self._tick_probe(dialled, now)

    def _turn(self, dialled: Dialled, other: Way, now: float) -> None:
        """Try the other way. A detour gets its own time; the way back does not, or no call would ever end."""
        self._replace(dialled, self._connect(dialled.peer, other, now))
        if other.relayed:
            for call in self._calls:
                if call.attempt.dialled is dialled:
                    call.attempt.alive(now)

    def _tick_probe(self, dialled: Dialled, now: float) -> None:
        """A relayed peer is tried directly from time to time; whichever connection stands then is the one."""
        probe = self._probes.get(dialled.peer)
        if probe is not None and self._choice.other(probe.peer, probe.way, now) is not None:
            self._probes.pop(dialled.peer).close()
        elif probe is None and self._choice.worth_a_probe(dialled.peer, dialled.way, now):
            self._probes[dialled.peer] = self._connect(dialled.peer, Way("", now), now)

    def _remake(self, dialled: Dialled, now: float) -> None:
        """A socket that ZAP refused never tries again by itself: make it anew for the calls that wait."""
        fresh = self._connect(dialled.peer, dialled.way, now)
        fresh.link.pace, fresh.link.heard_at = dialled.link.pace, dialled.link.heard_at
        self._replace(dialled, fresh)

    def _replace(self, dialled: Dialled, fresh: Dialled) -> None:
        """The calls that use `dialled` go on over another socket."""
        dialled.close()
        dialled.link, dialled.monitor, dialled.way = fresh.link, fresh.monitor, fresh.way
        dialled.up, dialled.remake_at = fresh.up, None
