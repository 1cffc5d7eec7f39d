"""A handler that remembers, for the tests of the tensor plane."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field

from medley.transports.tensors import (
    Accept,
    Already,
    Header,
    Kind,
    Limits,
    Peer,
    Refuse,
    Source,
    TensorPlane,
    digest_of,
)

FAST = Limits(floor_s=10.0, heartbeat_s=0.5)


@dataclass
class Shelf:
    """Takes what it is offered, serves what it was given, and knows who asked."""

    stock: dict[str, list[bytes]] = field(default_factory=dict)
    arrived: dict[str, bytes] = field(default_factory=dict)
    keys: list[bytes] = field(default_factory=list)
    refusal: Refuse | None = None
    calls: Counter[str] = field(default_factory=Counter)
    gate: asyncio.Event | None = None

    async def offer(self, peer_key: bytes, header: Header) -> Accept | Refuse | Already:
        self.calls["offer"] += 1
        self.keys.append(peer_key)
        if self.refusal is not None:
            return self.refusal
        if header.name in self.arrived:
            return Already(b"already")
        return Accept(bytearray(header.nbytes), dropped=lambda: self.calls.update(["dropped"]))

    async def received(self, peer_key: bytes, header: Header, buffer: memoryview) -> bytes:
        self.calls["received"] += 1
        if self.gate is not None:
            await self.gate.wait()
        self.arrived[header.name] = bytes(buffer)
        return b"thanks for " + header.name.encode()

    async def asked(self, peer_key: bytes, header: Header) -> Source | Refuse:
        self.calls["asked"] += 1
        self.keys.append(peer_key)
        if header.name not in self.stock:
            return Refuse(f"there is no '{header.name}' here")
        buffers = self.stock[header.name]
        release = lambda: self.calls.update(["released"])  # noqa: E731
        return Source(buffers, sum(map(len, buffers)), release, digest_of(buffers))


def header_of(name: str, *buffers: bytes) -> Header:
    return Header(kind=Kind.UPDATE, run="r1", name=name, nbytes=sum(map(len, buffers)), digest=digest_of(buffers))


def ask_for(name: str) -> Header:
    return Header(kind=Kind.PULL, run="r1", name=name)


def peer_of(plane: TensorPlane) -> Peer:
    return Peer(plane.endpoint, plane.public_key)
