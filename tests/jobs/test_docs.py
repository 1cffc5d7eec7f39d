"""The page about job files names every key, with the default it really has."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from medley.protocol.spec import JobSpec


def leaves(value: object, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if not is_dataclass(value):
        yield prefix, value
        return
    for one in fields(value):
        yield from leaves(getattr(value, one.name), f"{prefix}.{one.name}" if prefix else one.name)


def documented(page: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for row in re.findall(r"^\| (`[^|]*`) \| ([^|]*) \|", page, re.MULTILINE):
        keys = re.findall(r"`([^`]+)`", row[0])
        defaults = row[1].split(", ") if len(keys) > 1 else [row[1]]
        found |= {key: default.strip("` ") for key, default in zip(keys, defaults, strict=True)}
    return found


def test_every_key_is_there_with_its_default(repository: Path) -> None:
    page = documented((repository / "docs" / "job-file.md").read_text(encoding="utf-8"))
    real = dict(leaves(JobSpec()))
    assert page.keys() == real.keys()
    for key, default in real.items():
        match default:
            case bool():
                assert page[key] == str(default).lower(), key
            case int() | float():
                assert float(page[key]) == default, key
            case str():
                assert page[key] == (default or "empty"), key
            case _:
                pass


def test_the_index_names_every_page_and_only_pages_that_exist(repository: Path) -> None:
    docs = repository / "docs"
    named = {(docs / target).resolve() for target in re.findall(r"\]\(([^)]+)\)", (docs / "README.md").read_text())}
    assert all(path.exists() for path in named), [str(path) for path in named if not path.exists()]
    assert {path.resolve() for path in docs.rglob("*.md")} - named == {(docs / "README.md").resolve()}
