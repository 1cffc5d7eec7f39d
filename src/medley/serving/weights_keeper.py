"""What a front answers to stages that fetch their layers: the manifest of a model's tensors, and their pieces.

A piece is read into memory of its own, on another thread, and not mapped: the thread that sends it also carries every
token, and must wait for no disk; and a file that is cut short under a mapping would end the process. Few pieces are
lent at a time; whoever asks beyond that waits.
"""

from __future__ import annotations

import asyncio
import contextlib

from medley.models.remote_weights import Stock, encode_manifest, piece_of
from medley.models.weightfiles import Stored
from medley.protocol.errors import UserError
from medley.transports.tensors.contract import Accept, Already, Refuse, Source
from medley.transports.tensors.wire import Header, Kind, digest_of

MANIFEST = "manifest"
TENSOR = "tensor/"  # and its name; the header's sequence is the piece
LENT = 8  # pieces in memory


class WeightsKeeper:
    """The tensor plane's handler. `fingerprint`: what stages were told of these weights."""

    def __init__(self, weights: Stock, fingerprint: str) -> None:
        self._weights, self._fingerprint = weights, fingerprint
        self._reading = asyncio.Lock()
        self._room = asyncio.Semaphore(LENT)
        self._tensors: dict[str, Stored] = {}
        self._manifest = b""

    async def offer(self, peer_key: bytes, header: Header) -> Accept | Refuse | Already:
        return Refuse("a front takes no objects")

    async def received(self, peer_key: bytes, header: Header, buffer: memoryview) -> bytes:
        raise AssertionError("nothing was accepted")

    async def asked(self, peer_key: bytes, header: Header) -> Source | Refuse:
        if header.kind is not Kind.ARTIFACT:
            return Refuse(f"a front gives weights, not a {header.kind}")
        try:
            if header.name == MANIFEST:
                await self._list()
                return Source([self._manifest], len(self._manifest), digest=digest_of([self._manifest]))
            if header.name.startswith(TENSOR):
                return await self._piece(header.name.removeprefix(TENSOR), header.sequence)
        except UserError as error:
            return Refuse(str(error))
        except OSError as error:
            return Refuse(f"the weights cannot be read ({error.strerror})")
        return Refuse(f"a front gives '{MANIFEST}' and '{TENSOR}NAME', not '{header.name}'")

    async def _list(self) -> None:
        if self._manifest:
            return
        async with self._reading:
            if not self._manifest:
                self._tensors = dict(await asyncio.to_thread(self._weights.manifest))
                self._manifest = encode_manifest(self._fingerprint, self._tensors)

    async def _piece(self, name: str, number: int) -> Source:
        await self._list()
        if name not in self._tensors:
            raise UserError(f"these weights have no tensor '{name}'")
        begin, nbytes = piece_of(self._tensors[name], number)
        await self._room.acquire()
        with contextlib.ExitStack() as unlent:
            unlent.callback(self._room.release)
            async with self._reading:
                content, digest = await asyncio.to_thread(self._read, name, begin, nbytes)
            unlent.pop_all()
        return Source([content], nbytes, self._room.release, digest)

    def _read(self, name: str, begin: int, nbytes: int) -> tuple[bytes, bytes]:
        content = self._weights.raw(name, begin, nbytes)
        return content, digest_of([content])
