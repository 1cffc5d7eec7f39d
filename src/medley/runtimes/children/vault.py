"""The coordinator's keeper of bytes: artifacts to whoever is admitted, checkpoint parts from shards and back to
them.

It has no torch and no opinion: it checks digests, writes files durably, and seals a checkpoint in one atomic step
when its parent says so. Its socket key and port are kept, so that a restarted vault is the same vault.
"""

from __future__ import annotations

import asyncio
import json
import re
from contextlib import ExitStack
from pathlib import Path

import msgspec

from medley.policies.bounds import PART_NBYTES
from medley.protocol.codec import text
from medley.protocol.engine import (
    Command,
    Failed,
    Opened,
    OpenVault,
    PeersKnown,
    SealCheckpoint,
    Sealed,
    SetPeers,
)
from medley.protocol.errors import Damaged, MedleyError
from medley.protocol.version import __version__
from medley.runtimes.children.mapped import mapped
from medley.runtimes.children.plane import DAMAGED, Admission, open_plane
from medley.runtimes.clock import SystemClock
from medley.runtimes.pipe import ChildLink
from medley.store.artifacts import ArtifactStore
from medley.store.checkpoints import CheckpointStore, Manifest, Part
from medley.store.errors import is_full
from medley.transports.identity.credentials import write_private
from medley.transports.tensors.contract import Accept, Already, Refuse, Refused, Source
from medley.transports.tensors.curve import Curve
from medley.transports.tensors.partfile import FilePart
from medley.transports.tensors.plane import TensorPlane
from medley.transports.tensors.wire import Header, Kind

# A peer's words become paths: what may stand in one is decided here and not by the peer.
_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_INCOMING = re.compile(r"[0-9]+-part-([0-9]+)-[0-9]+(?:\.part|\.sums)?")
_PART = re.compile(r"part/[0-9]{1,18}/[0-9]{1,9}")


class Vault:
    """Handler of the tensor plane, and executor of the parent's commands."""

    def __init__(self, link: ChildLink, root: Path) -> None:
        self._link = link
        self._root = root
        self._checkpoints = CheckpointStore(root / "checkpoints")
        self._artifacts = ArtifactStore(root / "artifacts")
        self._parts: dict[Path, FilePart] = {}
        self._clock = SystemClock()
        self.admission = Admission()
        self.plane: TensorPlane | None = None

    # -- the tensor plane asks --------------------------------------------------------------------------------

    async def offer(self, peer_key: bytes, header: Header) -> Accept | Refuse | Already:
        """A shard wants to store a checkpoint part: name part/<version>/<shard>."""
        if header.kind is not Kind.ARTIFACT or not header.name.startswith("part/"):
            return Refuse(f"the vault takes checkpoint parts, not '{header.name}'")
        if not _PLAIN.fullmatch(header.run) or not _PART.fullmatch(header.name):
            return Refuse("this is no name of a checkpoint part")
        if not await asyncio.to_thread(self._checkpoints.versions, header.run):
            return Refuse(f"there is no job '{header.run}' here: one that runs has a checkpoint from its preparation")
        if header.nbytes > PART_NBYTES:
            return Refuse(f"a part of {header.nbytes} bytes is over the limit of {PART_NBYTES}")
        path = self._incoming(header)
        try:
            part = await asyncio.to_thread(FilePart.open, path, header)
        except OSError as error:
            return Refuse(f"no room for a checkpoint part: {error.strerror}")
        self._parts[path] = part
        return part.accept()

    async def received(self, peer_key: bytes, header: Header, buffer: memoryview) -> bytes:
        """Keep it, durable but not yet visible; the reply says under which name and digest."""
        path = self._incoming(header)
        try:
            kept = await asyncio.to_thread(self._keep, self._parts.pop(path), header)
        except (MedleyError, OSError) as error:  # a full disk, most likely: a person reads this sentence at the job
            raise Refused(self._why(error)) from error
        return msgspec.json.encode(kept)

    def _why(self, error: Exception) -> str:
        return f"the disk that holds {self._root} is full" if is_full(error) else str(error)

    def _keep(self, part: FilePart, header: Header) -> Part:
        file = part.finish()
        _, version, shard = header.name.split("/")
        try:
            return self._checkpoints.write_part(header.run, int(version), shard, file)
        finally:
            file.unlink()

    async def asked(self, peer_key: bytes, header: Header) -> Source | Refuse:
        kind, _, rest = header.name.partition("/")
        try:
            if kind == "artifact":
                return await asyncio.to_thread(self._artifact, rest)
            if kind == "part":
                version, shard = rest.split("/")
                return await asyncio.to_thread(self._part, header.run, int(version), shard)
        except Damaged as error:
            return Refuse(DAMAGED + str(error))
        except (KeyError, ValueError) as error:
            return Refuse(f"the vault has no '{header.name}': {error}")
        return Refuse(f"the vault has no '{header.name}'")

    def _artifact(self, digest: str) -> Source:
        with self._artifacts.opened(digest):
            return _source(self._artifacts.path(digest))

    def _part(self, job: str, version: int, shard: str) -> Source:
        manifest = self._checkpoints.manifest(job, version)
        with self._checkpoints.open_part(manifest, shard) as path:
            return _source(path)

    def _incoming(self, header: Header) -> Path:
        name = f"{header.generation}-{header.name.replace('/', '-')}"
        return self._root / "incoming" / header.run / name

    # -- the parent commands ----------------------------------------------------------------------------------

    async def execute(self, command: Command) -> None:
        match command:
            case SetPeers(number, keys):
                assert self.plane is not None
                self.admission.admit(keys, self.plane)
                self._link.send(PeersKnown(number))
            case SealCheckpoint():
                try:
                    sealed = await asyncio.to_thread(self._seal, command)
                except (MedleyError, OSError) as error:
                    self._link.send(Failed("seal", command.job, self._why(error), False, False))
                else:
                    self._link.send(sealed)
            case _:
                raise AssertionError(f"not a command for the vault: {command}")

    def _seal(self, command: SealCheckpoint) -> Sealed:
        manifest = Manifest(
            job=command.job,
            version=command.version,
            generation=command.generation,
            layout=command.layout,
            parts=tuple(Part(str(p.shard), p.file, p.digest, p.nbytes) for p in command.parts),
            ledger=text(command.committed),
            step=command.version,
            created_ns=self._clock.wall_ns(),
            medley=__version__,
        )
        sealed = self._checkpoints.seal(command.job, manifest)
        self._checkpoints.keep_only(command.job, command.keep)
        self._sweep(command.job, command.version)
        nbytes = sum(p.nbytes for p in command.parts)
        return Sealed(command.job, command.generation, command.version, sealed.digest, nbytes)

    def _sweep(self, job: str, version: int) -> None:
        """Parts on their way to checkpoints that are history now: whoever sent them died or was rolled back."""
        arriving = {name for path in list(self._parts) for name in (f"{path.name}.part", f"{path.name}.sums")}
        for file in (self._root / "incoming" / job).glob("*-part-*"):
            named = _INCOMING.fullmatch(file.name)
            if named and int(named[1]) <= version and file.name not in arriving:
                file.unlink(missing_ok=True)


def _source(path: Path) -> Source:
    """A file as an answer: mapped, however large and however many ask."""
    held = ExitStack()
    content = held.enter_context(mapped(path))
    return Source([content], content.nbytes, held.close)


async def serve() -> None:
    link = ChildLink()
    first = await link.commands.get()
    assert isinstance(first, OpenVault)
    root = Path(first.root)
    await asyncio.to_thread(ArtifactStore(root / "artifacts").sweep, SystemClock().wall_ns())
    vault = Vault(link, root)
    keep = root / "vault.json"
    curve, port = _remembered(keep)
    port = first.port or port
    try:
        vault.plane, address = await open_plane(first.host, port, first.encrypt, vault, vault.admission, curve)
    except MedleyError:
        vault.plane, address = await open_plane(first.host, 0, first.encrypt, vault, vault.admission, curve)
    _remember(keep, curve, int(address.endpoint.rpartition(":")[2]))
    link.send(Opened(address))
    while True:
        await vault.execute(await link.commands.get())


def _remembered(path: Path) -> tuple[Curve, int]:
    try:
        kept = json.loads(path.read_text())
        return Curve(bytes.fromhex(kept["public"]), bytes.fromhex(kept["secret"])), int(kept["port"])
    except (OSError, ValueError, KeyError):
        return Curve.generate(), 0


def _remember(path: Path, curve: Curve, port: int) -> None:
    kept = {"public": curve.public_key.hex(), "secret": curve.secret_key.hex(), "port": port}
    write_private(path, json.dumps(kept).encode())
