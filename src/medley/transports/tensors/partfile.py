"""A receive buffer in a file, so that an object cut off by the death of the receiver continues after its
restart.

Beside `NAME` lie `NAME.part` (the bytes, full length) and `NAME.sums` (the object's identity, then one record
a chunk). Opening re-hashes the recorded chunks and believes only those that match; `finish` checks the whole
digest and renames. A crash of the machine, not only of the process, costs at most the chunks that had not
reached the disk.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Self

import xxhash

from medley.protocol.errors import Damaged
from medley.transports.tensors.contract import Accept
from medley.transports.tensors.wire import Header, identity_of

_RECORD = struct.Struct("<QQQ")


@dataclass(eq=False, slots=True)
class FilePart:
    """An object on its way into `path`. Blocking: open and finish it off the event loop."""

    path: Path
    header: Header
    have: int
    _file: BinaryIO
    _map: mmap.mmap | None
    _sums: BinaryIO

    @classmethod
    def open(cls, path: Path, header: Header) -> Self:
        """Start or continue receiving `header`'s object into `path`. Raises `ValueError` without a digest."""
        if len(header.digest) != 16:
            raise ValueError("receiving into a file needs the object's digest in its header")
        path.parent.mkdir(parents=True, exist_ok=True)
        part, sums = _part(path), _sums(path)
        if not _continues(part, sums, header):
            part.write_bytes(b"")
            sums.write_bytes(identity_of(header))
        file = part.open("r+b")
        _reserve(file, header.nbytes)
        view = mmap.mmap(file.fileno(), header.nbytes) if header.nbytes else None
        have, records = _verified(sums, view, header.nbytes)
        journal = sums.open("r+b", buffering=0)
        journal.truncate(16 + records * _RECORD.size)
        journal.seek(0, os.SEEK_END)
        return cls(path, header, have, file, view, journal)

    def accept(self) -> Accept:
        """The handler's answer to the offer of this object."""
        buffer = memoryview(b"") if self._map is None else memoryview(self._map)
        return Accept(buffer, self.have, self.journal, self.close)

    def journal(self, offset: int, nbytes: int, check: int) -> None:
        self._sums.write(_RECORD.pack(offset, nbytes, check))

    def finish(self) -> Path:
        """Check the whole, make it durable and visible under its name. Raises `Damaged`, leaving nothing behind."""
        whole = xxhash.xxh3_128_digest(self._map if self._map is not None else b"")
        if self._map is not None:
            self._map.flush()
        os.fsync(self._file.fileno())
        self.close()
        if whole != self.header.digest:
            _part(self.path).unlink()
            _sums(self.path).unlink()
            raise Damaged(f"{self.path.name} does not match its digest after transfer")
        os.replace(_part(self.path), self.path)
        _sums(self.path).unlink()
        return self.path

    def close(self) -> None:
        """Let go of the files, keeping what arrived for the next `open`."""
        self._sums.close()
        self._file.close()
        if self._map is not None:
            # a view still held somewhere keeps the map alive; it goes with that view
            with contextlib.suppress(BufferError):
                self._map.close()
            self._map = None


def _reserve(file: BinaryIO, nbytes: int) -> None:
    """Full length now: `OSError` here instead of a bus error when a mapped hole meets a full disk."""
    file.truncate(nbytes)
    if nbytes and hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, nbytes)


def _part(path: Path) -> Path:
    return path.with_name(path.name + ".part")


def _sums(path: Path) -> Path:
    return path.with_name(path.name + ".sums")


def _continues(part: Path, sums: Path, header: Header) -> bool:
    if not part.is_file() or not sums.is_file():
        return False
    with sums.open("rb") as file:
        return file.read(16) == identity_of(header)


def _verified(sums: Path, view: mmap.mmap | None, nbytes: int) -> tuple[int, int]:
    """How many leading bytes, and how many records, are as recorded."""
    have = records = 0
    if view is None:
        return 0, 0
    with sums.open("rb") as file, memoryview(view) as whole:
        file.seek(16)
        while len(raw := file.read(_RECORD.size)) == _RECORD.size:
            offset, length, check = _RECORD.unpack(raw)
            if offset != have or not 0 < length <= nbytes - have:
                break
            with whole[have : have + length] as chunk:
                if xxhash.xxh3_64_intdigest(chunk) != check:
                    break
            have += length
            records += 1
    return have, records
