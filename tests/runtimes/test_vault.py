"""The vault serves files without holding them, and takes parts only of jobs that it has."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from medley.runtimes.children.mapped import mapped
from medley.runtimes.children.vault import Vault
from medley.runtimes.leftovers import sweep
from medley.store.errors import StoreFull
from medley.transports.tensors.contract import Accept, Refuse, Refused, Source
from medley.transports.tensors.partfile import FilePart
from medley.transports.tensors.wire import Header, Kind


@pytest.mark.parametrize("content", [b"", b"some bytes"])
def test_a_mapped_file_is_its_bytes_and_may_go_while_a_slice_lives(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    with mapped(path) as view:
        kept = view[:4]
        assert bytes(view) == content
        assert view.readonly
    assert bytes(kept) == content[:4]


def test_an_artifact_is_served_as_it_lies_on_disk(tmp_path: Path) -> None:
    link: Any = None
    vault = Vault(link, tmp_path)
    digest = vault._artifacts.put([b"a tokenizer"]).digest
    source = asyncio.run(vault.asked(b"", Header(kind=Kind.ARTIFACT, run="j", name=f"artifact/{digest}")))
    assert isinstance(source, Source)
    assert (bytes(source.buffers[0]), source.nbytes) == (b"a tokenizer", 11)
    assert source.release is not None
    source.release()


def test_sealing_sweeps_what_older_checkpoints_left_half_sent(tmp_path: Path) -> None:
    link: Any = None
    vault = Vault(link, tmp_path)
    incoming = tmp_path / "incoming" / "j"
    incoming.mkdir(parents=True)
    for name in ("1-part-3-0.part", "1-part-3-0.sums", "2-part-5-1.part", "2-part-6-0.part", "other"):
        (incoming / name).touch()
    vault._sweep("j", 5)
    assert sorted(path.name for path in incoming.iterdir()) == ["2-part-6-0.part", "other"]


def test_what_killed_processes_left_is_swept(tmp_path: Path) -> None:
    (tmp_path / "medley-part-abc").mkdir()
    (tmp_path / "medley-part-abc" / "part.safetensors").touch()
    (tmp_path / "medley-prepare-x").touch()
    (tmp_path / "kept").touch()
    sweep(tmp_path, "medley-part-*", "medley-prepare-*")
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_parts_of_unknown_jobs_are_refused(tmp_path: Path) -> None:
    link: Any = None
    vault = Vault(link, tmp_path)
    header = Header(kind=Kind.ARTIFACT, run="j", name="part/3/0", nbytes=8, digest=bytes(16))
    refused = asyncio.run(vault.offer(b"", header))
    assert isinstance(refused, Refuse)
    assert "no job 'j'" in refused.reason
    assert not (tmp_path / "incoming").exists()
    known = tmp_path / "checkpoints" / "j" / "checkpoint-0000000000"
    known.mkdir(parents=True)
    (known / "manifest.json").touch()
    accepted = asyncio.run(vault.offer(b"", header))
    assert isinstance(accepted, Accept)
    assert accepted.dropped is not None
    accepted.dropped()


def test_a_full_disk_while_a_part_is_kept_is_said_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(part: FilePart, header: Header) -> None:
        part.close()
        raise StoreFull("no room left in here: free some space")

    link: Any = None
    vault = Vault(link, tmp_path)
    monkeypatch.setattr(vault, "_keep", full)
    header = Header(kind=Kind.ARTIFACT, run="j", name="part/3/0", nbytes=8, digest=bytes(16))
    vault._parts[vault._incoming(header)] = FilePart.open(tmp_path / "part", header)
    with pytest.raises(Refused, match="no room left"):
        asyncio.run(vault.received(b"", header, memoryview(b"")))
