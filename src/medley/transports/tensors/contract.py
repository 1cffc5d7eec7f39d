"""What the tensor plane and the program around it say to each other: peers, limits, answers and the handler.

The plane moves bytes; the handler decides what is welcome, where it lands and what is served.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from medley.protocol.errors import PeerError
from medley.transports.tensors.wire import Header

Buffer = bytes | bytearray | memoryview
MIB = 1024 * 1024


class Refused(PeerError):
    """The peer answered and said no. `str(error)` is its reason."""


@dataclass(frozen=True, slots=True)
class Peer:
    """Where a peer's tensor plane listens and the CURVE public key (32 bytes) it must prove, None for plain
    loopback.
    """

    endpoint: str
    public_key: bytes | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    """Every bound of one plane. Change the sizes for large models, the times for very slow or very fast links."""

    chunk_nbytes: int = MIB  # largest chunk we send
    chunk_nbytes_max: int = 4 * MIB  # largest chunk we take
    window_chunks: int = 8  # credit a receiver grants, in chunks of chunk_nbytes
    object_nbytes: int = 8 * 1024 * MIB  # largest single object taken or fetched
    inbound_nbytes: int = 16 * 1024 * MIB  # all accepted and parked receive buffers together
    transfers: int = 1024  # open transfers and running handler calls, all peers
    transfers_per_peer: int = 64
    parked: int = 64  # cut-off partial objects kept for resuming
    parked_s: float = 600.0
    floor_s: float = 5.0  # a transfer without progress for less than this is never given up
    slack_s: float = 2.0  # added to the adaptive part of that deadline
    wait_s: float = 600.0  # longest a peer may keep us waiting for its handler while it says it is working
    handshake_s: float = 3.0
    heartbeat_s: float = 2.0
    silence_s: float = 30.0  # a connection without any frame for this long is dead
    resends: int = 8  # damaged chunks asked for again, per transfer
    post_nbytes: int = 4 * MIB  # largest post sent or taken; a pipeline of wide models needs more
    posts: int = 1024  # that wait for one peer
    posts_nbytes: int = 64 * MIB  # of them, and of the large ones that ZeroMQ still holds
    post_wait_s: float = 10.0  # posts to a peer that cannot be reached for longer than this are dropped


@dataclass(frozen=True, slots=True)
class Accept:
    """Take the object into `buffer` (writable, exactly `header.nbytes`), of which the first `have` bytes are
    right.

    `journal(offset, nbytes, xxh3_64)` is called from the I/O thread for each chunk that landed (see
    `FilePart.journal`). `dropped()` is called on the event loop when the plane gives the object up before it
    is whole.
    """

    buffer: memoryview | bytearray
    have: int = 0
    journal: Callable[[int, int, int], None] | None = None
    dropped: Callable[[], None] | None = None


@dataclass(frozen=True, slots=True)
class Refuse:
    """Say no. With `busy` the peer tries again for as long as its deadline allows."""

    reason: str
    busy: bool = False


@dataclass(frozen=True, slots=True)
class Already:
    """The object was received before: answer the retry with the same reply body."""

    body: bytes


@dataclass(frozen=True, slots=True)
class Source:
    """What answers an ASK. `release()` is called once, on the event loop, when the plane needs the buffers no more."""

    buffers: Sequence[Buffer]
    nbytes: int
    release: Callable[[], None] | None = None
    digest: bytes = b""


class Keeper(Protocol):
    """The program around a plane. `peer_key` is the CURVE public key (32 bytes), empty on a plain loopback
    plane.

    Any of the three may take its time up to `Limits.wait_s`: the peer is told that work goes on.
    """

    async def offer(self, peer_key: bytes, header: Header) -> Accept | Refuse | Already: ...

    async def received(self, peer_key: bytes, header: Header, buffer: memoryview) -> bytes: ...

    async def asked(self, peer_key: bytes, header: Header) -> Source | Refuse: ...
