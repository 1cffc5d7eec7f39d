"""A reader of checkpoints sees the old or the new, complete, whatever happened to the writer or to the
disk."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import fsspec
import numpy
import pytest
from safetensors.numpy import load_file, save

from medley.protocol.errors import Damaged, UserError
from medley.store.checkpoints import CheckpointStore, Manifest, Part
from medley.store.errors import Fenced, StoreFull


def tensors(value: float, elements: int = 300) -> bytes:
    return save({"flat": numpy.full(elements, value, dtype=numpy.float32)})


def manifest_of(version: int, parts: list[Part], generation: int = 1, job: str = "job-a") -> Manifest:
    return Manifest(
        job=job,
        version=version,
        generation=generation,
        layout="f1",
        parts=tuple(parts),
        ledger='{"epoch": 0}',
        step=version * 10,
        created_ns=1,
        medley="0.1.0",
    )


def write(store: CheckpointStore, version: int, generation: int = 1, value: float | None = None) -> Manifest:
    fill = float(version) if value is None else value
    parts = [store.write_part("job-a", version, str(shard), [tensors(fill + shard)]) for shard in range(2)]
    return store.seal("job-a", manifest_of(version, parts, generation))


def latest(store: CheckpointStore) -> int | None:
    manifest, _ = store.latest_good("job-a")
    return manifest.version if manifest else None


def loaded(store: CheckpointStore, manifest: Manifest, shard: str) -> float:
    with store.open_part(manifest, shard) as path:
        return float(load_file(path)["flat"][0])


@pytest.fixture(params=["directory", "memory"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "directory":
        yield str(tmp_path / "checkpoints")
        return
    yield "memory://bucket/checkpoints"
    files = fsspec.filesystem("memory")
    if files.exists("/bucket"):
        files.rm("/bucket", recursive=True)


@pytest.fixture
def flip(root: str) -> Callable[[int, str], None]:
    """`flip(version, name)` inverts one bit in the middle of every file of a checkpoint that starts so."""

    def flipped(version: int, prefix: str) -> None:
        files, base = fsspec.core.url_to_fs(root)
        for name in files.ls(f"{base}/job-a/checkpoint-{version:010}", detail=False):
            if name.rpartition("/")[2].startswith(prefix):
                content = bytearray(files.cat_file(name))
                content[len(content) // 2] ^= 4
                files.pipe_file(name, bytes(content))

    return flipped


def test_a_sealed_checkpoint_is_read_back_by_another_process(root: str) -> None:
    store = CheckpointStore(root)
    assert store.latest_good("job-a") == (None, [])
    sealed = write(store, 7)
    again = CheckpointStore(root)
    assert again.latest_good("job-a") == (sealed, [])
    assert (loaded(again, sealed, "0"), loaded(again, sealed, "1")) == (7.0, 8.0)
    with pytest.raises(KeyError), again.open_part(sealed, "2"):
        pass


def test_parts_alone_are_not_visible(root: str) -> None:
    store = CheckpointStore(root)
    write(store, 1)
    store.write_part("job-a", 2, "0", [tensors(2)])
    assert latest(store) == 1
    assert store.versions("job-a") == [1]


@pytest.mark.parametrize(("prefix", "reason"), [("part-", "does not match its digest"), ("manifest", "manifest.json")])
def test_a_flipped_bit_skips_to_the_last_good_one_with_a_sentence(
    root: str, flip: Callable[[int, str], None], prefix: str, reason: str
) -> None:
    store = CheckpointStore(root)
    write(store, 1)
    newest = write(store, 2)
    flip(2, prefix)
    manifest, problems = store.latest_good("job-a")
    assert manifest is not None and manifest.version == 1
    (sentence,) = problems
    assert sentence.startswith("Checkpoint 2 of job 'job-a' is skipped: ") and reason in sentence
    if prefix == "part-":
        with pytest.raises(Damaged, match="digest"), store.open_part(newest, "0"):
            pass


def test_a_truncated_manifest_and_a_missing_or_short_part_are_skipped(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    for version in range(1, 5):
        write(store, version)
    folder = tmp_path / "job-a"
    manifest = folder / "checkpoint-0000000004" / "manifest.json"
    manifest.write_bytes(manifest.read_bytes()[:100])
    next((folder / "checkpoint-0000000003").glob("part-0-*")).unlink()
    short = next((folder / "checkpoint-0000000002").glob("part-1-*"))
    short.write_bytes(short.read_bytes()[:-1])
    good, problems = store.latest_good("job-a")
    assert good is not None and good.version == 1
    reasons = ["cannot be read", "is missing", "bytes instead of"]
    assert all(reason in problem for reason, problem in zip(reasons, problems, strict=True)), problems


def test_writing_a_version_again_replaces_it_in_one_step(root: str) -> None:
    store = CheckpointStore(root)
    old = write(store, 5, generation=1)
    parts = [store.write_part("job-a", 5, str(shard), [tensors(50)]) for shard in range(2)]
    assert store.latest_good("job-a") == (old, [])
    assert loaded(store, old, "1") == 6.0
    new = store.seal("job-a", manifest_of(5, parts, generation=2))
    assert store.latest_good("job-a") == (new, [])
    assert loaded(store, new, "1") == 50.0
    with pytest.raises(Fenced, match="generation 1 may not replace checkpoint 5, which generation 2 sealed"):
        write(store, 5, generation=1, value=9)


def test_a_later_generation_is_newer_than_a_higher_version(root: str) -> None:
    store = CheckpointStore(root)
    write(store, 10, generation=1)
    write(store, 30, generation=1)
    write(store, 20, generation=2)
    assert latest(store) == 20
    assert store.prune("job-a", 1) == [10, 30]


def test_seal_refuses_what_is_not_there(root: str) -> None:
    store = CheckpointStore(root)
    part = store.write_part("job-a", 3, "0", [tensors(3)])
    with pytest.raises(Damaged, match="missing"):
        store.seal("job-a", manifest_of(3, [part, replace(part, shard="1", file="part-1.safetensors")]))
    with pytest.raises(Damaged, match="instead of"):
        store.seal("job-a", manifest_of(3, [replace(part, nbytes=1)]))
    with pytest.raises(Damaged, match="impossible file"):
        store.seal("job-a", manifest_of(3, [replace(part, file="../../etc/passwd")]))
    with pytest.raises(Damaged, match="each once"):
        store.seal("job-a", manifest_of(3, [part, part]))
    with pytest.raises(ValueError, match="file's name"):
        store.write_part("../job", 3, "0", [])
    assert latest(store) is None


def test_prune_keeps_the_good_ones_even_when_the_newest_are_damaged(
    root: str, flip: Callable[[int, str], None]
) -> None:
    store = CheckpointStore(root)
    for version in range(1, 7):
        write(store, version)
    store.write_part("job-a", 0, "0", [tensors(0)])
    store.write_part("job-a", 9, "0", [tensors(9)])
    flip(6, "part-")
    flip(4, "manifest")
    assert store.prune("job-a", 2) == [1, 2]
    assert store.versions("job-a") == [6, 5, 4, 3]
    assert latest(store) == 5
    assert store.prune("job-a", 4) == []
    store.seal("job-a", manifest_of(9, [store.write_part("job-a", 9, "0", [tensors(9)])]))
    assert store.prune("job-a", 1) == [3, 5, 6]
    assert latest(store) == 9
    with pytest.raises(ValueError, match="at least one"):
        store.prune("job-a", 0)


def test_prune_without_any_good_one_deletes_nothing(root: str, flip: Callable[[int, str], None]) -> None:
    store = CheckpointStore(root)
    for version in (1, 2):
        write(store, version)
        flip(version, "part-")
    assert store.prune("job-a", 1) == []
    assert store.versions("job-a") == [2, 1]


KILLED = """
from pathlib import Path
from medley.store.checkpoints import CheckpointStore, Manifest
store = CheckpointStore({root!r})
content = Path({content!r})
parts = tuple(store.write_part("job-a", 2, shard, content) for shard in ("0", "1"))
store.seal("job-a", Manifest("job-a", 2, 1, "f1", parts, "{{}}", 20, 1, "0.1.0"))
"""


@pytest.mark.parametrize(
    ("failpoint", "expected"),
    [
        ("checkpoint.part.before_rename", 1),
        ("checkpoint.seal.before_rename", 1),
        ("checkpoint.seal.after_rename", 2),
    ],
)
def test_a_kill_leaves_the_old_or_the_new(
    failpoint: str, expected: int, tmp_path: Path, die_at: Callable[[str, str], None]
) -> None:
    root = tmp_path / "checkpoints"
    store = CheckpointStore(root)
    write(store, 1)
    content = tmp_path / "content"
    content.write_bytes(tensors(2))
    die_at(failpoint, KILLED.format(root=str(root), content=str(content)))
    assert latest(store) == expected
    write(store, 2)
    write(store, 3)
    assert latest(store) == 3
    store.prune("job-a", 1)
    assert [folder.name for folder in (root / "job-a").iterdir()] == ["checkpoint-0000000003"]


def test_a_full_disk_is_said_and_the_old_one_stays(tiny_disk: Path) -> None:
    store = CheckpointStore(tiny_disk)
    write(store, 1)
    with pytest.raises(StoreFull, match="free some space"):
        store.write_part("job-a", 2, "0", [tensors(2, elements=500_000)])
    assert latest(store) == 1
    assert list((tiny_disk / "job-a" / "checkpoint-0000000002").iterdir()) == []


LIMITED = """
import resource, signal, sys
from medley.store.checkpoints import CheckpointStore
from medley.store.errors import StoreFull
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
try:
    CheckpointStore({root!r}).write_part("job-a", 1, "0", [bytes(20_000)])
except StoreFull:
    sys.exit(7)
"""


def test_a_limit_on_file_sizes_is_a_full_store(tmp_path: Path) -> None:
    pytest.importorskip("resource")
    done = subprocess.run([sys.executable, "-c", LIMITED.format(root=str(tmp_path))], timeout=60, check=False)
    assert done.returncode == 7


def test_a_source_that_fails_midway_leaves_nothing(root: str) -> None:
    def failing() -> Iterator[bytes]:
        yield b"first"
        raise ConnectionResetError("the shard went away")

    store = CheckpointStore(root)
    with pytest.raises(ConnectionResetError):
        store.write_part("job-a", 1, "0", failing())
    files, base = fsspec.core.url_to_fs(root)
    assert not files.exists(base) or files.find(base) == []


def test_what_is_not_a_tensor_file_is_never_handed_out(root: str) -> None:
    store = CheckpointStore(root)
    part = store.write_part("job-a", 1, "0", [b"\x80\x04pickled"])
    sealed = store.seal("job-a", manifest_of(1, [part]))
    with pytest.raises(Damaged, match="not a tensor file"), store.open_part(sealed, "0"):
        pass


@pytest.mark.parametrize("url", ["nonsense://bucket", "{tmp}/file"])
def test_a_root_that_cannot_be_used_is_one_sentence(url: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError):
        CheckpointStore(url.format(tmp=tmp_path))


def test_keep_only_deletes_what_the_event_log_does_not_know(root: str) -> None:
    store = CheckpointStore(root)
    for version in (1, 2, 3, 4, 6):
        write(store, version)
    being_written = store.write_part("job-a", 5, "0", [tensors(5)])
    assert store.keep_only("job-a", [4, 2]) == [6, 3, 1]
    assert store.versions("job-a") == [4, 2]
    assert store.write_part("job-a", 5, "0", [tensors(5)]) == being_written
    assert latest(store) == 4
