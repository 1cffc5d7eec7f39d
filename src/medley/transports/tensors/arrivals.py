"""Everything that peers open with us: their links, the objects they offer, the objects they ask for.

It bounds what one peer and all peers together may hold open, and keeps cut-off objects for a while.
"""

from __future__ import annotations

import zmq

from medley.protocol.errors import FrameError
from medley.transports.tensors.contract import Keeper
from medley.transports.tensors.inbound import Reception, Supply
from medley.transports.tensors.links import IDLE_LINK_S, Link
from medley.transports.tensors.transfers import Host
from medley.transports.tensors.wire import Frame, Header, Type, decode_header, identity_of


class Arrivals:
    """Inbound links by routing id, and objects under way by key and identity. Lives on the I/O thread."""

    def __init__(self, host: Host, handler: Keeper, router: zmq.Socket[bytes], authenticated: bool) -> None:
        self._host, self._handler, self._router, self._authenticated = host, handler, router, authenticated
        self._limits = host.limits
        self._links: dict[bytes, Link] = {}
        self._receptions: dict[bytes, Reception] = {}
        self._revoked: set[bytes] = set()

    def link_of(self, route: bytes, head: zmq.Frame, frame: Frame, now: float) -> Link:
        """The link a frame came over. `FrameError` when its key was revoked, or it would be a link too many."""
        key = self._key_of(head)
        link = self._links.get(route)
        if link is None or link.key != key or link.lost:
            if link is not None:
                self._lose(link, now)
            link = Link(self._router, (route,), key, self._host.counters)
        if key in self._revoked:
            link.refuse(frame.transfer, "this key was revoked")
            raise FrameError("a frame from a revoked key")
        if frame.type in (Type.OFFER, Type.ASK) and route not in self._links:
            if len(self._links) >= 4 * self._limits.transfers:
                link.refuse(frame.transfer, "too many connections", busy=True)
                raise FrameError("a connection too many")
            self._links[route] = link
        return link

    def poster(self, head: zmq.Frame) -> bytes:
        """Whose post this is. `FrameError` when its key was revoked."""
        key = self._key_of(head)
        if key in self._revoked:
            raise FrameError("a post from a revoked key")
        return key

    def unknown(self, link: Link, frame: Frame, body: bytes, now: float) -> None:
        """A frame of no transfer we know: it opens one, or is counted. `FrameError` for a bad header."""
        if frame.type in (Type.OFFER, Type.ASK):
            self._open(link, frame, decode_header(body), now)
            return
        self._host.counters["frames_unknown"] += 1
        if frame.type in (Type.CREDIT, Type.CHUNK):
            link.refuse(frame.transfer, "no such transfer", busy=True)

    def tick(self, now: float) -> None:
        """Probe what is open, drop what is dead or parked too long."""
        for reception in list(self._receptions.values()):
            reception.tick(now)
        for link in list(self._links.values()):
            link.flush()
            for transfer in list(link.transfers.values()):
                if isinstance(transfer, Supply):
                    transfer.tick(now)
            if link.lost:
                self._lose(link, now)
            elif not link.transfers and now - link.heard_at > IDLE_LINK_S:
                del self._links[link.prefix[0]]
        self._expire_parked(now)

    def revoke(self, key: bytes, now: float) -> None:
        """Refuse the key's frames from now on and end all that it has open."""
        self._revoked.add(key)
        for link in [link for link in self._links.values() if link.key == key]:
            for number in list(link.transfers):
                link.refuse(number, "this key was revoked")
            self._lose(link, now)
        for reception in [one for one in self._receptions.values() if one.key == key]:
            reception.drop()

    def admit(self, key: bytes) -> None:
        self._revoked.discard(key)

    def end(self, now: float) -> None:
        for link in list(self._links.values()):
            self._lose(link, now)
        for reception in list(self._receptions.values()):
            reception.drop()

    def _key_of(self, head: zmq.Frame) -> bytes:
        return bytes.fromhex(str(head.get("User-Id"))) if self._authenticated else b""

    def _open(self, link: Link, frame: Frame, header: Header, now: float) -> None:
        limits = self._limits
        if self._is_full(link):
            link.refuse(frame.transfer, "too many open transfers", busy=True)
        elif frame.type is Type.ASK:
            most = min(limits.chunk_nbytes, frame.length or limits.chunk_nbytes)
            Supply(self._host, self._handler, header, link, frame.transfer, most, now).open(now)
        else:
            self._open_reception(link, frame.transfer, header, now)

    def _is_full(self, link: Link) -> bool:
        """Whether its peer, or all together, hold open as much as they may. Without keys a connection is a peer."""
        limits, links = self._limits, self._links.values()
        its = [one for one in links if one is link or (self._authenticated and one.key == link.key)]
        return (
            sum(len(one.transfers) for one in its) >= limits.transfers_per_peer
            or sum(len(one.transfers) for one in links) >= limits.transfers
            or self._host.load["handler_calls"] >= limits.transfers
        )

    def _open_reception(self, link: Link, transfer: int, header: Header, now: float) -> None:
        limits = self._limits
        name = link.key + identity_of(header)
        reception = self._receptions.get(name)
        if reception is not None:
            reception.attach(link, transfer, now)
            return
        if header.nbytes > limits.object_nbytes:
            link.refuse(transfer, f"{header.nbytes} bytes are more than the {limits.object_nbytes} taken here")
            return
        taken = sum(one.header.nbytes for one in self._receptions.values())
        if taken + header.nbytes > limits.inbound_nbytes or len(self._receptions) >= limits.transfers:
            link.refuse(transfer, "no room for another object now", busy=True)
            return
        reception = Reception(self._host, self._handler, link.key, header, lambda _: self._forget(name))
        self._receptions[name] = reception
        reception.attach(link, transfer, now)
        reception.open(now)

    def _forget(self, name: bytes) -> None:
        self._receptions.pop(name, None)

    def _expire_parked(self, now: float) -> None:
        parked = [one for one in self._receptions.values() if one.link is None and one.incoming and not one.finishing]
        parked.sort(key=lambda one: one.since)
        surplus = len(parked) - self._limits.parked
        for index, reception in enumerate(parked):
            if index < surplus or now - reception.since > self._limits.parked_s:
                self._host.counters["parked_dropped"] += 1
                reception.drop()

    def _lose(self, link: Link, now: float) -> None:
        link.lost = True
        self._links.pop(link.prefix[0], None)
        for transfer in list(link.transfers.values()):
            transfer.cut(now)
