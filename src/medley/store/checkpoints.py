"""Checkpoints: parts that shards wrote, made visible together by one manifest.

    <root>/<job>/checkpoint-<version>/part-<shard>-<digest>.safetensors
                                     /manifest.json                       the commit point

Promises: a reader sees the old or the new, complete; a damaged one is skipped for the last good one, with a
sentence. A part's name carries its digest, so writing version 7 again (after a rollback) never touches the
bytes of the version 7 that is visible: the new manifest replaces the old one atomically. Leaves to others:
when to write, and what is in a part beyond the rules of `tensorfile`.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Final

import msgspec

from medley.observe import failpoints
from medley.protocol.errors import Damaged
from medley.store.errors import Fenced
from medley.store.places import TEMPORARY, Digest, Place, digest_of, place, read_chunks
from medley.store.tensorfile import check_tensor_file

MAX_MANIFEST_NBYTES: Final = 64 << 20
MAX_PARTS: Final = 4096
_FORMAT: Final = 1
_MANIFEST: Final = "manifest.json"
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_FOLDER: Final = re.compile(r"checkpoint-(\d{10})")
_DIGEST_CHARACTERS: Final = 16


@dataclass(frozen=True, slots=True)
class Part:
    """What one shard wrote. `sha256` is of the whole file, in hexadecimal."""

    shard: str
    file: str
    sha256: str
    nbytes: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """One checkpoint. `version` is the commit it holds; `ledger` is the coordinator's own JSON, opaque here.

    `layout` is the fingerprint of the parameter layout, `created_ns` wall-clock time since 1970, `medley` the
    version that wrote it. `digest` is over all the rest: `seal` computes it, and what the caller puts there
    is ignored.
    """

    job: str
    version: int
    generation: int
    layout: str
    parts: tuple[Part, ...]
    ledger: str
    step: int
    created_ns: int
    medley: str
    digest: str = ""
    format: int = _FORMAT


class CheckpointStore:
    """The checkpoints of all jobs under one root; processes on several machines may share it."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        """`root` is a directory or an fsspec URL; UserError when it cannot be used."""
        self._place: Place = place(root)

    def write_part(self, job: str, version: int, shard: str, content: Iterable[bytes] | Path) -> Part:
        """Store one shard's safetensors bytes (chunks, or a file to copy), durable but not yet visible to
        readers.

        Raises StoreFull and then leaves nothing. Writing the same bytes twice is harmless.
        """
        _checked(shard)
        digest = Digest(read_chunks(content) if isinstance(content, Path) else content)

        def file() -> str:
            return f"part-{shard}-{digest.hexdigest()[:_DIGEST_CHARACTERS]}.safetensors"

        self._place.put(_folder(job, version), file, digest, failpoint="checkpoint.part.before_rename")
        return Part(shard, file(), digest.hexdigest(), digest.nbytes)

    def seal(self, job: str, manifest: Manifest) -> Manifest:
        """Make a checkpoint visible: one atomic step. Returns the manifest with its digest.

        Raises Damaged if a part is missing or has another size, Fenced if a later generation sealed this
        version, StoreFull; in each case readers still see what they saw.
        """
        if manifest.job != job:
            raise ValueError(f"a manifest of job '{manifest.job}' cannot seal a checkpoint of '{job}'")
        folder = _folder(job, manifest.version)
        sealed = _with_digest(manifest)
        _check_manifest(sealed, job, manifest.version)
        self._check_sizes(sealed)
        self._check_generation(sealed)
        encoded = msgspec.json.format(msgspec.json.encode(sealed), indent=1)
        if len(encoded) > MAX_MANIFEST_NBYTES:
            raise ValueError(f"a manifest of {len(encoded)} bytes is over the limit of {MAX_MANIFEST_NBYTES}")
        self._place.put(folder, lambda: _MANIFEST, [encoded], failpoint="checkpoint.seal.before_rename")
        failpoints.hit("checkpoint.seal.after_rename")
        return sealed

    def versions(self, job: str) -> list[int]:
        """The versions that have a manifest, newest first; none of them is verified."""
        return [version for version in self._folders(job) if self._is_sealed(job, version)]

    def latest_good(self, job: str) -> tuple[Manifest | None, list[str]]:
        """The newest checkpoint whose every byte matches its digests, and a sentence for each damaged one
        met.

        Newest is the highest generation, then the highest version: what a replaced generation sealed late is
        older than what its successor sealed. Reads each candidate once, in full.
        """
        manifests, problems = self._ranked(job)
        for manifest in manifests:
            try:
                return self.verify(job, manifest.version), problems
            except Damaged as error:
                problems.append(_skipped(job, manifest.version, error))
        return None, problems

    def _ranked(self, job: str) -> tuple[list[Manifest], list[str]]:
        """The readable manifests, newest first, and a sentence for each other one."""
        manifests: list[Manifest] = []
        problems: list[str] = []
        for version in self.versions(job):
            try:
                manifests.append(self.manifest(job, version))
            except Damaged as error:
                problems.append(_skipped(job, version, error))
        return sorted(manifests, key=_rank, reverse=True), problems

    def verify(self, job: str, version: int) -> Manifest:
        """The manifest of one checkpoint after reading all its parts; Damaged, one sentence, when a digest is
        wrong."""
        manifest = self.manifest(job, version)
        self._check_sizes(manifest)
        for part in manifest.parts:
            if self._digest_of(manifest, part) != part.sha256:
                raise Damaged(f"{part.file} does not match its digest")
        return manifest

    def manifest(self, job: str, version: int) -> Manifest:
        """The manifest of one checkpoint, itself verified, its parts not; Damaged when it is missing or
        wrong."""
        path = f"{_folder(job, version)}/{_MANIFEST}"
        nbytes = self._place.nbytes(path)
        if nbytes is None:
            raise Damaged(f"{_MANIFEST} is missing")
        if nbytes > MAX_MANIFEST_NBYTES:
            raise Damaged(f"{_MANIFEST} has {nbytes} bytes, the limit is {MAX_MANIFEST_NBYTES}")
        try:
            manifest = msgspec.json.decode(b"".join(self._place.read(path)), type=Manifest)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise Damaged(f"{_MANIFEST} cannot be read ({error})") from error
        _check_manifest(manifest, job, version)
        return manifest

    @contextmanager
    def open_part(self, manifest: Manifest, shard: str) -> Iterator[Path]:
        """A local file with a part's verified bytes, safe to give to safetensors; it may be gone after the
        block.

        Raises Damaged when the digest or the file's structure is wrong, KeyError for a shard the checkpoint
        lacks.
        """
        part = next((part for part in manifest.parts if part.shard == shard), None)
        if part is None:
            raise KeyError(shard)
        remote = self._part_path(manifest, part)
        if self._place.nbytes(remote) != part.nbytes:
            raise Damaged(f"{part.file} is missing or has another size than its manifest says")
        with self._fetched(remote) as path:
            if digest_of(read_chunks(path)) != part.sha256:
                raise Damaged(f"{part.file} does not match its digest")
            check_tensor_file(path)
            yield path

    @contextmanager
    def _fetched(self, remote: str) -> Iterator[Path]:
        local = self._place.local(remote)
        if local is not None:
            yield local
            return
        with tempfile.TemporaryDirectory(prefix="medley-part-") as room:
            path = Path(room) / "part.safetensors"
            with open(path, "xb") as file:
                file.writelines(self._place.read(remote))
            yield path

    def prune(self, job: str, keep: int) -> list[int]:
        """Delete checkpoints older than the `keep` newest good ones, and what a crash left unsealed before
        them.

        Verifies what it keeps, in full, and deletes nothing sealed while fewer than `keep` are good: damage
        never leaves a job without a good one. Returns the sealed versions deleted.
        """
        if keep < 1:
            raise ValueError(f"at least one checkpoint is kept, not {keep}")
        manifests, _ = self._ranked(job)
        good = list(islice((manifest for manifest in manifests if self._is_good(manifest)), keep))
        if not good:
            return []
        old = {m.version for m in manifests if _rank(m) < _rank(good[-1])} if len(good) == keep else set()
        sealed = set(self.versions(job))
        unsealed = {v for v in self._folders(job) if v not in sealed and v < good[0].version}
        for version in sorted(old | unsealed):
            self._remove(job, version)
        return sorted(old)

    def keep_only(self, job: str, versions: Iterable[int]) -> list[int]:
        """Delete every sealed checkpoint but these, and older folders that a crash left unsealed.

        The caller has just sealed the newest of them; what the event log does not know goes too. Returns the
        versions deleted.
        """
        kept = set(versions)
        newest = max(kept)
        sealed = set(self.versions(job))
        gone = [v for v in self._folders(job) if v not in kept and (v in sealed or v < newest)]
        for version in gone:
            self._remove(job, version)
        return gone

    def _is_good(self, manifest: Manifest) -> bool:
        try:
            return self.verify(manifest.job, manifest.version) == manifest
        except Damaged:
            return False

    def _digest_of(self, manifest: Manifest, part: Part) -> str | None:
        try:
            return digest_of(self._place.read(self._part_path(manifest, part)))
        except FileNotFoundError:
            return None

    def _remove(self, job: str, version: int) -> None:
        folder = _folder(job, version)
        # The manifest goes first, so that a crash midway leaves an unsealed folder and not a damaged
        # checkpoint.
        self._place.remove(f"{folder}/{_MANIFEST}")
        self._place.remove_folder(folder)

    def _folders(self, job: str) -> list[int]:
        matches = (_FOLDER.fullmatch(name) for name in self._place.names(_checked(job)))
        return sorted((int(match[1]) for match in matches if match), reverse=True)

    def _is_sealed(self, job: str, version: int) -> bool:
        return self._place.nbytes(f"{_folder(job, version)}/{_MANIFEST}") is not None

    def _check_sizes(self, manifest: Manifest) -> None:
        for part in manifest.parts:
            nbytes = self._place.nbytes(self._part_path(manifest, part))
            if nbytes is None:
                raise Damaged(f"{part.file} is missing")
            if nbytes != part.nbytes:
                raise Damaged(f"{part.file} has {nbytes} bytes instead of {part.nbytes}")

    def _check_generation(self, manifest: Manifest) -> None:
        try:
            visible = self.manifest(manifest.job, manifest.version)
        except Damaged:
            return
        if visible.generation > manifest.generation:
            raise Fenced(
                f"generation {manifest.generation} may not replace checkpoint {manifest.version}, "
                f"which generation {visible.generation} sealed"
            )

    @staticmethod
    def _part_path(manifest: Manifest, part: Part) -> str:
        return f"{_folder(manifest.job, manifest.version)}/{part.file}"


def _checked(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} cannot be a file's name: letters, digits, '.', '_' and '-', at most 128")
    return name


def _folder(job: str, version: int) -> str:
    if not 0 <= version < 10**10:
        raise ValueError(f"a version has 1 to 10 digits, not {version}")
    return f"{_checked(job)}/checkpoint-{version:010}"


def _with_digest(manifest: Manifest) -> Manifest:
    blank = replace(manifest, digest="")
    return replace(manifest, digest=hashlib.sha256(msgspec.json.encode(blank)).hexdigest())


def _check_manifest(manifest: Manifest, job: str, version: int) -> None:
    if manifest.format != _FORMAT:
        raise Damaged(f"{_MANIFEST} has format {manifest.format}, this Medley reads format {_FORMAT}")
    if manifest != _with_digest(manifest):
        raise Damaged(f"{_MANIFEST} does not match its digest")
    if (manifest.job, manifest.version) != (job, version):
        raise Damaged(f"{_MANIFEST} is of checkpoint {manifest.version} of job '{manifest.job}'")
    shards = {part.shard for part in manifest.parts}
    if len(shards) != len(manifest.parts) or not 0 < len(shards) <= MAX_PARTS:
        raise Damaged(f"{_MANIFEST} must name 1 to {MAX_PARTS} shards, each once")
    for part in manifest.parts:
        if not _NAME.fullmatch(part.file) or part.file == _MANIFEST or part.file.startswith(TEMPORARY):
            raise Damaged(f"{_MANIFEST} names the impossible file {part.file!r}")


def _rank(manifest: Manifest) -> tuple[int, int]:
    return manifest.generation, manifest.version


def _skipped(job: str, version: int, error: Damaged) -> str:
    return f"Checkpoint {version} of job '{job}' is skipped: {error}."
