"""What a machine keeps of a job's data is whole or not there, and damage in its cache is noticed."""

from __future__ import annotations

from pathlib import Path

import pytest

from medley.protocol.errors import Damaged
from medley.runtimes.children.plane import intact, place_tree
from medley.runtimes.children.preparer import put_in_place
from medley.store.artifacts import ArtifactStore


def kept(tmp_path: Path) -> tuple[ArtifactStore, str, str]:
    """A cache with a tree of two files: the tree's digest, and that of the file that is restored last."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "a").write_text("first")
    (source / "b").write_text("second")
    cache = ArtifactStore(tmp_path / "cache")
    tree = cache.put_directory(source).digest
    return cache, tree, cache.tree(tree)[1].digest


def test_a_tree_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    cache, tree, last = kept(tmp_path)
    target = tmp_path / "trees" / tree
    cache.path(last).write_text("torn")
    with pytest.raises(Damaged):
        place_tree(cache, tree, target)
    assert list(target.parent.iterdir()) == []
    assert not intact(cache, last)
    cache.put([b"second"])
    place_tree(cache, tree, target)
    place_tree(cache, tree, target)  # another engine may have been first
    assert (target / "b").read_text() == "second"
    assert list(target.parent.iterdir()) == [target]


def test_a_damaged_file_of_the_cache_is_thrown_away(tmp_path: Path) -> None:
    cache, tree, last = kept(tmp_path)
    assert intact(cache, last)
    cache.path(last).write_text("torn")
    assert not intact(cache, last)
    assert not cache.has(last)
    assert intact(cache, tree)


def test_an_export_is_replaced_by_renaming(tmp_path: Path) -> None:
    target = tmp_path / "exports" / "j"
    target.parent.mkdir()
    for number, text in enumerate(("first", "second")):
        fresh = tmp_path / f"fresh-{number}"
        fresh.mkdir()
        (fresh / "weights").write_text(text)
        put_in_place(fresh, target, tmp_path / f"before-{number}")
        assert (target / "weights").read_text() == text
    assert (tmp_path / "before-1" / "weights").read_text() == "first"
