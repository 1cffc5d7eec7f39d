"""Where files live: a directory of this machine, or any store that fsspec knows by URL.

Promises: `put` makes a file visible whole and durable, or not at all; a full disk is StoreFull and leaves
what was there. In a directory that is a temporary file, fsync, rename and fsync of the directory; in an
object store it is one upload, which such stores show only when it is complete. Leaves to others: names,
digests and what is a commit point.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final, Protocol

from medley.observe import failpoints
from medley.protocol.errors import Unavailable, UserError
from medley.store.errors import StoreFull, is_full

CHUNK_NBYTES: Final = 1 << 20
TEMPORARY: Final = ".tmp-"

Name = Callable[[], str]


class Place(Protocol):
    """Files under one root. Paths are relative, with `/`, and made by us, never by a peer."""

    def put(self, folder: str, name: Name, chunks: Iterable[bytes], failpoint: str | None = None) -> None:
        """Write or replace a file, atomically and durably; StoreFull when there is no room.

        `name` is asked for only when all chunks are consumed, so it may depend on them (a digest).
        """

    def read(self, path: str) -> Iterator[bytes]:
        """The file in chunks of at most CHUNK_NBYTES; FileNotFoundError when it does not exist."""

    def nbytes(self, path: str) -> int | None:
        """The file's size, None when it does not exist."""

    def names(self, path: str) -> list[str]:
        """The names in a folder, sorted; none when it does not exist."""

    def remove(self, path: str) -> None:
        """Delete a file; nothing happens when it does not exist."""

    def remove_folder(self, path: str) -> None:
        """Delete a folder of files and what is in it."""

    def local(self, path: str) -> Path | None:
        """The file's path on this machine, None when it has none."""


def place(root: str | os.PathLike[str]) -> Place:
    """The place a path or URL names: `/srv/checkpoints`, `file:///srv/checkpoints`, `s3://bucket/prefix`."""
    text = os.fspath(root)
    if "://" not in text:
        return DirectoryPlace(Path(text))
    if text.startswith("file://"):
        return DirectoryPlace(Path(text.removeprefix("file://")))
    return ObjectPlace(text)


class DirectoryPlace:
    """A directory of this machine."""

    def __init__(self, root: Path) -> None:
        self._root = root.absolute()
        try:
            make_directories(self._root)
        except OSError as error:
            raise UserError(
                f"{self._root} cannot be used as a directory ({error.strerror}): give a directory you may write to"
            ) from error

    def put(self, folder: str, name: Name, chunks: Iterable[bytes], failpoint: str | None = None) -> None:
        directory = self._root / folder
        try:
            make_directories(directory)
            write_durably(directory, name, chunks, failpoint)
        except OSError as error:
            if is_full(error):
                raise StoreFull(
                    f"no room left in {directory}: free some space; what was stored before is safe"
                ) from error
            raise

    def read(self, path: str) -> Iterator[bytes]:
        return read_chunks(self._root / path)

    def nbytes(self, path: str) -> int | None:
        try:
            return (self._root / path).stat().st_size
        except (FileNotFoundError, NotADirectoryError):
            return None

    def names(self, path: str) -> list[str]:
        try:
            return sorted(os.listdir(self._root / path))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def remove(self, path: str) -> None:
        target = self._root / path
        target.unlink(missing_ok=True)
        sync_directory(target.parent)

    def remove_folder(self, path: str) -> None:
        folder = self._root / path
        for name in self.names(path):
            (folder / name).unlink(missing_ok=True)
        folder.rmdir()

    def local(self, path: str) -> Path | None:
        return self._root / path


class ObjectPlace:
    """A bucket, or whatever else fsspec reaches by URL."""

    def __init__(self, url: str) -> None:
        import fsspec

        try:
            self._files, root = fsspec.core.url_to_fs(url)
        except ImportError as error:
            raise UserError(f"{url} needs one more package: {error}") from error
        except ValueError as error:
            raise UserError(f"{url} names no store that fsspec knows: {error}") from error
        self._root = str(root).rstrip("/")
        self._url = url

    def put(self, folder: str, name: Name, chunks: Iterable[bytes], failpoint: str | None = None) -> None:
        # Spooled first: a source that fails midway must not leave a short object, which closing an upload
        # would.
        with tempfile.NamedTemporaryFile(prefix="medley-upload-", delete=False) as spool:
            try:
                for chunk in chunks:
                    spool.write(chunk)
                spool.close()
                _reach(failpoint)
                with self._reported():
                    self._files.makedirs(self._path(folder), exist_ok=True)
                    self._files.put_file(spool.name, self._path(f"{folder}/{name()}"))
            finally:
                spool.close()
                os.unlink(spool.name)

    def read(self, path: str) -> Iterator[bytes]:
        with self._reported(), self._files.open(self._path(path), "rb") as file:
            yield from chunks_of(file)

    def nbytes(self, path: str) -> int | None:
        try:
            with self._reported():
                self._files.invalidate_cache()
                return int(self._files.size(self._path(path)))
        except FileNotFoundError:
            return None

    def names(self, path: str) -> list[str]:
        try:
            with self._reported():
                self._files.invalidate_cache()
                found = self._files.ls(self._path(path), detail=False)
        except FileNotFoundError:
            return []
        return sorted(name.rstrip("/").rpartition("/")[2] for name in found)

    def remove(self, path: str) -> None:
        try:
            with self._reported():
                self._files.rm_file(self._path(path))
        except FileNotFoundError:
            return

    def remove_folder(self, path: str) -> None:
        with self._reported():
            self._files.rm(self._path(path), recursive=True)

    def local(self, path: str) -> Path | None:
        return None

    def _path(self, path: str) -> str:
        return f"{self._root}/{path}"

    @contextmanager
    def _reported(self) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise
        except OSError as error:
            if is_full(error):
                raise StoreFull(f"no room left in {self._url}: free some space") from error
            raise Unavailable(f"{self._url} does not answer as it should: {error}") from error


def write_durably(directory: Path, name: Name, chunks: Iterable[bytes], failpoint: str | None = None) -> None:
    """Replace `directory / name()` atomically; on an error it is untouched and the temporary file is gone."""
    temporary = directory / f"{TEMPORARY}{os.getpid()}-{secrets.token_hex(4)}"
    try:
        with open(temporary, "xb") as file:
            for chunk in chunks:
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        _reach(failpoint)
        os.replace(temporary, directory / name())
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(directory)


def make_directories(path: Path) -> None:
    """Create a directory and its parents so that they survive a power cut."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        sync_directory(folder.parent)


def sync_directory(path: Path) -> None:
    """Make renames in a directory durable. Windows has no such call; its file system journals them itself."""
    if os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_chunks(path: Path) -> Iterator[bytes]:
    """A file's content in chunks of at most CHUNK_NBYTES."""
    with open(path, "rb") as file:
        yield from chunks_of(file)


def chunks_of(file: BinaryIO) -> Iterator[bytes]:
    """The rest of an open file in chunks of at most CHUNK_NBYTES."""
    while chunk := file.read(CHUNK_NBYTES):
        yield chunk


class Digest:
    """Passes chunks through and knows, at the end, their sha256 and their number of bytes."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = chunks
        self._hash = hashlib.sha256()
        self.nbytes = 0

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self._chunks:
            self._hash.update(chunk)
            self.nbytes += len(chunk)
            yield chunk

    def hexdigest(self) -> str:
        return self._hash.hexdigest()


def digest_of(chunks: Iterable[bytes]) -> str:
    """The sha256 of all chunks, in hexadecimal."""
    digest = Digest(chunks)
    for _ in digest:
        pass
    return digest.hexdigest()


def _reach(failpoint: str | None) -> None:
    if failpoint is not None:
        failpoints.hit(failpoint)
