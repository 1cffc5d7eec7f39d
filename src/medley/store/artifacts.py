"""Files kept by the digest of their content: prepared data, tokenizers, exports.

    <root>/<sha256>

Promises: a file under its digest is complete, however often and by whomever it was put; what `opened` and
`restore` give out was verified. A directory is a *tree*: a small JSON file that names its files' digests,
kept like any other. Leaves to others: which artifacts are still wanted.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Final

import msgspec

from medley.protocol.errors import Damaged, UserError
from medley.protocol.ids import NS_PER_S
from medley.store.places import TEMPORARY, Digest, DirectoryPlace, chunks_of, digest_of, read_chunks

MAX_TREE_FILES: Final = 10_000
MAX_TREE_NBYTES: Final = 8 << 20
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_ABANDONED_NS: Final = 24 * 3600 * NS_PER_S


@dataclass(frozen=True, slots=True)
class Artifact:
    """A stored file: the sha256 of its content in hexadecimal, and its size."""

    digest: str
    nbytes: int


@dataclass(frozen=True, slots=True)
class TreeFile:
    """One file of a directory: its path relative to it, with `/`."""

    path: str
    digest: str
    nbytes: int


class _Tree(msgspec.Struct, forbid_unknown_fields=True):
    files: list[TreeFile]


class ArtifactStore:
    """The artifacts under one local directory."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        """UserError when the directory cannot be used."""
        self._root = Path(root).absolute()
        self._place = DirectoryPlace(self._root)

    def put(self, chunks: Iterable[bytes], expected: Artifact | None = None) -> Artifact:
        """Keep some bytes. With `expected`, stop as soon as they are too many, and refuse another digest
        (Damaged).

        Raises StoreFull and then leaves nothing.
        """
        digest = Digest(_bounded(chunks, expected))
        self._place.put("", lambda: _named(digest, expected), digest)
        return Artifact(digest.hexdigest(), digest.nbytes)

    def put_file(self, path: str | os.PathLike[str]) -> Artifact:
        """Keep a copy of a file."""
        return self.put(_read(Path(path)))

    def put_directory(self, path: str | os.PathLike[str]) -> Artifact:
        """Keep every file below a directory, links to files followed; the artifact is the tree that names
        them."""
        base = Path(path)
        found = sorted(file for file in base.rglob("*") if file.is_file())
        if len(found) > MAX_TREE_FILES:
            raise UserError(f"{base} holds {len(found)} files, the limit is {MAX_TREE_FILES}")
        files = []
        for file in found:
            kept = self.put_file(file)
            files.append(TreeFile(file.relative_to(base).as_posix(), kept.digest, kept.nbytes))
        return self.put([msgspec.json.encode(_Tree(files))])

    def path(self, digest: str) -> Path:
        """Where the file of this digest lies, whether or not it is there; not verified."""
        if not _DIGEST.fullmatch(digest):
            raise ValueError(f"{digest!r} is not a sha256 in hexadecimal")
        return self._root / digest

    def has(self, digest: str) -> bool:
        """Whether a file of this digest is kept."""
        return self.path(digest).is_file()

    @contextmanager
    def opened(self, digest: str) -> Iterator[BinaryIO]:
        """The file, verified, positioned at its start; Damaged when it does not match, KeyError when it is
        unknown."""
        path = self.path(digest)
        if not path.is_file():
            raise KeyError(digest)
        with open(path, "rb") as file:
            if digest_of(chunks_of(file)) != digest:
                raise Damaged(f"artifact {path} does not match its digest")
            file.seek(0)
            yield file

    def tree(self, digest: str) -> tuple[TreeFile, ...]:
        """The files of a kept directory; Damaged when the artifact is not a tree whose paths stay inside."""
        with self.opened(digest) as file:
            content = file.read(MAX_TREE_NBYTES + 1)
        if len(content) > MAX_TREE_NBYTES:
            raise Damaged(f"artifact {digest} is too large for a tree")
        try:
            files = msgspec.json.decode(content, type=_Tree).files
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise Damaged(f"artifact {digest} is not a tree ({error})") from error
        for one in files:
            if not _stays_inside(one.path) or not _DIGEST.fullmatch(one.digest):
                raise Damaged(f"the tree {digest} names the impossible file {one.path!r}")
        return tuple(files)

    def restore(self, digest: str, destination: str | os.PathLike[str]) -> None:
        """Write a kept directory below `destination`, each file verified and replaced atomically."""
        base = Path(destination)
        for one in self.tree(digest):
            self._copy(one.digest, base / one.path)

    def sweep(self, now_ns: int) -> None:
        """Delete what killed processes were writing; a day is longer than any write that still goes on.

        `now_ns` is wall-clock time since 1970.
        """
        for file in self._root.glob(f"{TEMPORARY}*"):
            with suppress(FileNotFoundError):
                if file.stat().st_mtime_ns < now_ns - _ABANDONED_NS:
                    file.unlink()

    def _copy(self, digest: str, target: Path) -> None:
        with self.opened(digest) as file:
            DirectoryPlace(target.parent).put("", lambda: target.name, chunks_of(file))


def _named(digest: Digest, expected: Artifact | None) -> str:
    found = Artifact(digest.hexdigest(), digest.nbytes)
    if expected is not None and found != expected:
        raise Damaged(f"{found.nbytes} bytes with digest {found.digest} came instead of {expected}")
    return found.digest


def _bounded(chunks: Iterable[bytes], expected: Artifact | None) -> Iterator[bytes]:
    nbytes = 0
    for chunk in chunks:
        nbytes += len(chunk)
        if expected is not None and nbytes > expected.nbytes:
            raise Damaged(f"more than the {expected.nbytes} bytes of artifact {expected.digest} came")
        yield chunk


def _read(path: Path) -> Iterator[bytes]:
    try:
        yield from read_chunks(path)
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): give a file you may read") from error


def _stays_inside(path: str) -> bool:
    parts = PurePosixPath(path).parts
    plain = "\\" not in path and ":" not in path and "\0" not in path
    return bool(parts) and plain and ".." not in parts and parts[0] != "/"
