"""A receive buffer in a file believes only what it can check."""

from __future__ import annotations

from pathlib import Path

import pytest
import xxhash

from medley.protocol.errors import Damaged
from medley.transports.tensors import FilePart, Header, Kind, digest_of

DATA = bytes(range(256)) * 16
CHUNK = 1000


def header_of(data: bytes = DATA, name: str = "a") -> Header:
    return Header(kind=Kind.ARTIFACT, run="r", name=name, nbytes=len(data), digest=digest_of([data]))


def land(part: FilePart, upto: int) -> None:
    buffer = part.accept().buffer
    for offset in range(part.have, upto, CHUNK):
        chunk = DATA[offset : offset + CHUNK]
        buffer[offset : offset + len(chunk)] = chunk
        part.journal(offset, len(chunk), xxhash.xxh3_64_intdigest(chunk))


def test_a_whole_object_appears_under_its_name_and_nothing_else(tmp_path: Path) -> None:
    part = FilePart.open(tmp_path / "x" / "model.bin", header_of())
    land(part, len(DATA))
    assert part.finish().read_bytes() == DATA
    assert [path.name for path in (tmp_path / "x").iterdir()] == ["model.bin"]


def test_a_reopened_part_continues_where_it_was(tmp_path: Path) -> None:
    first = FilePart.open(tmp_path / "m", header_of())
    land(first, 3000)
    first.close()
    second = FilePart.open(tmp_path / "m", header_of())
    assert second.have == 3000
    land(second, len(DATA))
    assert second.finish().read_bytes() == DATA


def test_damage_in_the_file_sends_it_back_to_the_last_good_chunk(tmp_path: Path) -> None:
    first = FilePart.open(tmp_path / "m", header_of())
    land(first, 3000)
    first.close()
    raw = bytearray((tmp_path / "m.part").read_bytes())
    raw[1500] ^= 1
    (tmp_path / "m.part").write_bytes(raw)
    second = FilePart.open(tmp_path / "m", header_of())
    assert second.have == 1000
    land(second, len(DATA))
    assert second.finish().read_bytes() == DATA


@pytest.mark.parametrize("torn", [b"", b"\x01" * 5, b"\xff" * 24], ids=["none", "half a record", "nonsense"])
def test_a_torn_journal_costs_only_its_tail(tmp_path: Path, torn: bytes) -> None:
    first = FilePart.open(tmp_path / "m", header_of())
    land(first, 2000)
    first.close()
    with (tmp_path / "m.sums").open("ab") as file:
        file.write(torn)
    second = FilePart.open(tmp_path / "m", header_of())
    assert second.have == 2000
    second.close()


def test_another_object_under_the_name_starts_afresh(tmp_path: Path) -> None:
    first = FilePart.open(tmp_path / "m", header_of())
    land(first, 2000)
    first.close()
    second = FilePart.open(tmp_path / "m", header_of(name="b"))
    assert second.have == 0
    second.close()


def test_a_whole_that_fails_its_digest_leaves_nothing(tmp_path: Path) -> None:
    part = FilePart.open(tmp_path / "m", header_of())
    with pytest.raises(Damaged):
        part.finish()
    assert list(tmp_path.iterdir()) == []


def test_an_empty_object_needs_no_bytes(tmp_path: Path) -> None:
    assert FilePart.open(tmp_path / "m", header_of(b"")).finish().read_bytes() == b""


def test_a_part_without_a_digest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="digest"):
        FilePart.open(tmp_path / "m", Header(kind=Kind.ARTIFACT, run="r", nbytes=1))
