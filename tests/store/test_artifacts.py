"""A file kept by its digest is complete and verified, and a tree never writes outside its destination."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from medley.protocol.errors import Damaged, UserError
from medley.store.artifacts import Artifact, ArtifactStore
from medley.store.errors import StoreFull


def test_the_same_content_is_kept_once_and_read_back_verified(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path / "artifacts")
    source = tmp_path / "source"
    source.write_bytes(b"tokens" * 1000)
    kept = store.put_file(source)
    assert kept == Artifact(hashlib.sha256(source.read_bytes()).hexdigest(), 6000)
    assert store.put([b"tokens"] * 1000) == kept
    assert store.has(kept.digest) and not store.has("0" * 64)
    assert [file.name for file in (tmp_path / "artifacts").iterdir()] == [kept.digest]
    with ArtifactStore(tmp_path / "artifacts").opened(kept.digest) as file:
        assert file.read() == source.read_bytes()


def test_damage_is_found_before_a_byte_is_given_out(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    kept = store.put([b"content"])
    store.path(kept.digest).write_bytes(b"c0ntent")
    with pytest.raises(Damaged, match="digest"), store.opened(kept.digest):
        pass
    with pytest.raises(KeyError), store.opened("0" * 64):
        pass
    with pytest.raises(ValueError, match="sha256"):
        store.path("../secret")


def test_only_the_expected_bytes_are_accepted(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    expected = Artifact(hashlib.sha256(b"right").hexdigest(), 5)
    for wrong in ([b"wrong"], [b"right", b"more"], [b"r"]):
        with pytest.raises(Damaged):
            store.put(wrong, expected)
    assert list(tmp_path.iterdir()) == []
    assert store.put([b"ri", b"ght"], expected) == expected


def test_a_directory_is_restored_as_it_was(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "sub").mkdir(parents=True)
    (source / "a.json").write_text("{}")
    (source / "sub" / "b.txt").write_text("b")
    if hasattr(os, "symlink"):
        (source / "linked.json").symlink_to(source / "a.json")
    store = ArtifactStore(tmp_path / "artifacts")
    kept = store.put_directory(source)
    assert store.put_directory(source) == kept
    store.restore(kept.digest, tmp_path / "restored")
    assert {file.path for file in store.tree(kept.digest)} == {"a.json", "linked.json", "sub/b.txt"}
    assert (tmp_path / "restored" / "sub" / "b.txt").read_text() == "b"
    assert not (tmp_path / "restored" / "linked.json").is_symlink()


@pytest.mark.parametrize("path", ["../out", "/etc/passwd", "a/../../b", "", "C:/x", "a\\b"])
def test_a_tree_that_points_outside_is_refused(path: str, tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    inside = store.put([b"x"])
    tree = {"files": [{"path": path, "digest": inside.digest, "nbytes": 1}]}
    hostile = store.put([json.dumps(tree).encode()])
    with pytest.raises(Damaged, match="impossible file"):
        store.restore(hostile.digest, tmp_path / "restored")
    with pytest.raises(Damaged, match="not a tree"):
        store.tree(inside.digest)


def test_a_full_disk_leaves_nothing_behind(tiny_disk: Path) -> None:
    store = ArtifactStore(tiny_disk)
    kept = store.put([b"small"])
    with pytest.raises(StoreFull):
        store.put([bytes(1 << 16)] * 32)
    assert [file.name for file in tiny_disk.iterdir()] == [kept.digest]


def test_what_a_killed_process_left_is_swept_after_a_day(tmp_path: Path) -> None:
    old, young = tmp_path / ".tmp-1-a", tmp_path / ".tmp-2-b"
    old.touch()
    young.touch()
    os.utime(old, (0, 0))
    ArtifactStore(tmp_path).sweep(young.stat().st_mtime_ns)
    assert [file.name for file in tmp_path.iterdir()] == [young.name]


def test_a_file_that_cannot_be_read_is_a_persons_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        ArtifactStore(tmp_path).put_file(tmp_path / "missing")
