"""What every engine does with the tensor plane: open it with its keys, admit peers, fetch from the vault."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from medley.protocol.errors import Damaged, Unavailable, UserError
from medley.protocol.messages import Address
from medley.runtimes.children.environment import emulated_link, gate, ports, transport
from medley.store.artifacts import ArtifactStore
from medley.transports.tensors.contract import MIB, Accept, Already, Keeper, Limits, Peer, Refuse, Refused, Source
from medley.transports.tensors.curve import Curve
from medley.transports.tensors.plane import TensorPlane
from medley.transports.tensors.ways import Detour, Emulated, Transport, Ways
from medley.transports.tensors.wire import Header, Kind
from medley.transports.tunnel.contract import pipe_name

DAMAGED = "damaged: "
UNFINISHED = "medley-tree-"
LIMITS = Limits(post_nbytes=32 * MIB)  # 512 tokens of a wide model, in fp32

Posted = Callable[[bytes, memoryview], None]


def encode_key(key: bytes | None) -> str:
    return base64.b64encode(key).decode() if key else ""


def decode_key(key: str) -> bytes | None:
    return base64.b64decode(key) if key else None


def peer_of(address: Address) -> Peer:
    return Peer(address.endpoint, decode_key(address.key))


class NoObjects:
    """The keeper of a plane that only calls others, or only exchanges posts: objects are neither taken nor given."""

    async def offer(self, peer_key: bytes, header: Header) -> Accept | Refuse | Already:
        return Refuse("no objects are taken here")

    async def received(self, peer_key: bytes, header: Header, buffer: memoryview) -> bytes:
        return b""

    async def asked(self, peer_key: bytes, header: Header) -> Source | Refuse:
        return Refuse("no objects are given here")


class Admission:
    """The keys that may connect. Checked from the plane's own thread, replaced from the event loop."""

    def __init__(self) -> None:
        self._keys: frozenset[bytes] = frozenset()

    def __call__(self, key: bytes) -> bool:
        return key in self._keys

    def admit(self, keys: tuple[str, ...], plane: TensorPlane) -> None:
        """These and no others; a key that is gone loses its connections too."""
        wanted = frozenset(base64.b64decode(k) for k in keys)
        for key in self._keys - wanted:
            plane.revoke(key)
        for key in wanted - self._keys:
            plane.admit(key)  # a machine that was given up may come back with its engines alive
        self._keys = wanted


def ways() -> Ways:
    """What the parent says of the ways to other machines; direct ones only where it has no gate."""
    wanted = transport()
    proxy, secret = emulated_link()
    if secret and wanted != "grpc":  # which is the machine's own wish, and goes before a job's
        return Ways("direct", emulated=Emulated(proxy, secret))  # a pipe would lead past the link
    proxy, secret = gate()
    return ways_by(wanted, proxy, secret) if secret else Ways(wanted)


def ways_by(wanted: Transport, proxy: str, secret: str) -> Ways:
    """With this gate as the detour."""

    def named(peer: Peer, why: str) -> str:
        return f"tcp://{secret}.{why}.{pipe_name(peer.endpoint, peer.public_key or b'')}:1"

    return Ways(wanted, Detour(proxy, named))


async def open_plane(
    host: str,
    port: int,
    encrypt: bool,
    handler: Keeper,
    admission: Admission,
    curve: Curve | None = None,
    posted: Posted | None = None,
    by: Ways | None = None,
) -> tuple[TensorPlane, Address]:
    """A plane and the address under which peers find it. Port 0: one of the ports that a firewall lets through.

    `posted` hears one-way posts on the plane's own thread. `by`: the ways to others, where no parent says them.
    """
    identity = (curve or Curve.generate()) if encrypt else None
    plane = await _open_first([port] if port else ports(), host, identity, handler, admission, posted, by or ways())
    return plane, Address(plane.endpoint, encode_key(plane.public_key))


async def _open_first(
    wanted: Sequence[int],
    host: str,
    identity: Curve | None,
    handler: Keeper,
    admission: Admission,
    posted: Posted | None,
    by: Ways,
) -> TensorPlane:
    """On the first of these ports that is free; on any at all when none is wanted. Raises UserError."""

    async def opened(port: int) -> TensorPlane:
        return await TensorPlane.open(
            host, port, identity=identity, limits=LIMITS, allow=admission, handler=handler, ways=by, posted=posted
        )

    for port in wanted[:-1]:
        with contextlib.suppress(UserError):
            return await opened(port)
    return await opened(wanted[-1] if wanted else 0)


async def fetch(plane: TensorPlane, vault: Address, job: str, name: str, generation: int = 0) -> memoryview:
    """One object of the vault, in memory. Raises Damaged if the vault says so, Unavailable otherwise."""
    header = Header(kind=Kind.ARTIFACT, run=job, name=name, generation=generation)
    try:
        return await plane.get(peer_of(vault), header, bytearray)
    except Refused as refused:
        reason = str(refused)
        if reason.startswith(DAMAGED):
            raise Damaged(reason.removeprefix(DAMAGED)) from refused
        raise Unavailable(f"the vault refuses {name}: {reason}") from refused


async def fetch_directory(
    plane: TensorPlane, vault: Address, job: str, digest: str, cache: ArtifactStore, target: Path
) -> None:
    """A tree of files by digest, through the machine's own cache, into `target`: whole, or not at all."""
    await _ensure(plane, vault, job, digest, cache)
    for file in cache.tree(digest):
        await _ensure(plane, vault, job, file.digest, cache)
    await asyncio.to_thread(place_tree, cache, digest, target)


def place_tree(cache: ArtifactStore, digest: str, target: Path) -> None:
    """Restore beside and rename: a crash in between leaves nothing that looks complete."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=UNFINISHED, dir=target.parent) as folder:
        whole = Path(folder) / "tree"
        cache.restore(digest, whole)
        try:
            whole.rename(target)
        except OSError:
            if not target.is_dir():  # another engine of this machine was first: the same files
                raise


async def _ensure(plane: TensorPlane, vault: Address, job: str, digest: str, cache: ArtifactStore) -> None:
    if not await asyncio.to_thread(intact, cache, digest):
        content = await fetch(plane, vault, job, f"artifact/{digest}")
        kept = cache.put([bytes(content)])
        if kept.digest != digest:
            raise Damaged(f"artifact {digest} arrived as {kept.digest}")


def intact(cache: ArtifactStore, digest: str) -> bool:
    """Whether a file is kept and still what its digest says; a damaged one is thrown away."""
    try:
        with cache.opened(digest):
            return True
    except KeyError:
        return False
    except Damaged:
        cache.path(digest).unlink(missing_ok=True)
        return False
