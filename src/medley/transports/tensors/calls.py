"""The calls of our own that are under way, on connections of theirs. Lives on the I/O thread."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import zmq

from medley.transports.tensors.contract import Peer, Refused
from medley.transports.tensors.curve import Curve
from medley.transports.tensors.dialling import Dialling
from medley.transports.tensors.links import Dialled
from medley.transports.tensors.outbound import Attempt, Call
from medley.transports.tensors.transfers import Host
from medley.transports.tensors.ways import Choice


class Calls:
    """Any number of calls on one connection a peer."""

    def __init__(
        self, host: Host, context: zmq.Context[zmq.Socket[bytes]], identity: Curve | None, choice: Choice
    ) -> None:
        self._host = host
        self.dialling = Dialling(host, context, identity, choice, self, deaf=False)
        self._calls: dict[Call, None] = {}
        self._revoked: set[bytes] = set()
        self._next_transfer = 1

    def call(self, peer: Peer, make: Callable[[Attempt], Call], now: float) -> Call:
        """Start a call, opening a connection where none is. `zmq.ZMQError` when no socket can be had."""
        call = make(Attempt(self.dialling.dial(peer, now), self._host, now, now))
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
        self.dialling.revoke(key)

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
        self.dialling.tick(used, now)

    def end(self, error: Exception) -> None:
        """Fail every call."""
        for call in list(self._calls):
            call.fail(error)

    # -- the tenant of the connections ---------------------------------------------------------------

    def stands(self, dialled: Dialled) -> None:
        """`begin` sees it."""

    def falls(self, dialled: Dialled) -> None:
        """The transfers on it were cut."""

    def breaks(self, peer: Peer) -> None:
        """Calls live through that."""

    def turns(self, dialled: Dialled, now: float) -> None:
        for call in self._calls:
            if call.attempt.dialled is dialled:
                call.attempt.turns(now)
