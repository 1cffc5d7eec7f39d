"""The data of a job as a directory: read once, split once, the same bytes on every machine.

    manifest.json   counts, seed and the sha256 of each file
    train.jsonl     one example a line, in source order (the epoch order is computed, never stored)
    heldout.jsonl   whole groups that are never trained on
    checks.jsonl    built-in corpus only: rewordings, never trained on, of questions that are

Promises: the directory appears complete or not at all; `open_prepared` raises `Damaged` when a byte differs.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from medley.data.corpus import load_checks, load_pairs
from medley.data.examples import Example
from medley.data.sources import read
from medley.data.split import split
from medley.protocol.errors import Damaged, UserError
from medley.protocol.spec import Data

FORMAT = 1
MANIFEST = "manifest.json"
FILES = ("train.jsonl", "heldout.jsonl", "checks.jsonl")


@dataclass(frozen=True, slots=True)
class Prepared:
    """A prepared directory in memory. `digest` names its content; two machines compare it."""

    directory: Path
    train: tuple[Example, ...]
    heldout: tuple[Example, ...]
    checks: tuple[Example, ...]
    digest: str


def prepare(data: Data, seed: int, directory: Path) -> Prepared:
    """Read, split and write `data` to `directory` (replaced if it exists). Raises `UserError`."""
    train, heldout = split(read(data), data.heldout_fraction, seed, keep={check.group for check in _checks(data)})
    if not train:
        raise UserError(f"nothing is left to train on once data.heldout_fraction {data.heldout_fraction} is held out")
    parts = (train, heldout, _checks(data))
    partial = directory.with_name(directory.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for name, examples in zip(FILES, parts, strict=True):
        (partial / name).write_bytes(_lines(examples))
    counts = {name.removesuffix(".jsonl"): len(part) for name, part in zip(FILES, parts, strict=True)}
    manifest = {
        "format": FORMAT,
        "seed": seed,
        "source": data.source,
        "counts": counts,
        "sha256": _digests(partial),
    }
    (partial / MANIFEST).write_text(json.dumps(manifest, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    shutil.rmtree(directory, ignore_errors=True)
    os.replace(partial, directory)
    return open_prepared(directory)


def open_prepared(directory: Path) -> Prepared:
    """Load a prepared directory. Raises `Damaged` when a file is missing or does not match its digest."""
    try:
        text = (directory / MANIFEST).read_text(encoding="utf-8")
        manifest = json.loads(text)
        digests = _digests(directory)
    except (OSError, ValueError) as error:
        raise Damaged(f"{directory} is not a prepared data directory ({error})") from error
    if manifest.get("format") != FORMAT or manifest.get("sha256") != digests:
        raise Damaged(f"{directory} does not match its manifest")
    train, heldout, checks = (_examples((directory / name).read_text(encoding="utf-8")) for name in FILES)
    digest = hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()
    return Prepared(directory, train, heldout, checks, digest)


def _checks(data: Data) -> list[Example]:
    """The check questions with their answers. They reword trained questions, so those groups must not be held out."""
    if data.source != "builtin":
        return []
    pairs = {pair.id: pair for pair in load_pairs()}
    asked = ((check.question, pairs[check.pair_id]) for check in load_checks())
    return [Example(f"check/{pair.id}", pair.focus.lower(), question, pair.answer) for question, pair in asked]


def _lines(examples: Iterable[Example]) -> bytes:
    return "".join(json.dumps(asdict(e), ensure_ascii=False) + "\n" for e in examples).encode()


def _examples(text: str) -> tuple[Example, ...]:
    return tuple(Example(**json.loads(line)) for line in text.split("\n") if line)


def _digests(directory: Path) -> dict[str, str]:
    return {name: hashlib.sha256((directory / name).read_bytes()).hexdigest() for name in FILES}
