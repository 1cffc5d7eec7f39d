"""What MEDLEY_COMPILED=1 compiles: nothing that is decoded by its annotations."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Iterator
from typing import Any, get_args, get_type_hints

from medley.dashboard.served import Note
from medley.protocol.engine import Command, Report
from medley.protocol.messages import Message
from medley.protocol.plan import Plan
from medley.protocol.records import Record
from medley.protocol.spec import JobSpec
from medley.protocol.stages.words import Word
from medley.roles.state import RunState

from .source import ROOT

DECODED = (Message, Record, Command, Report, Word, JobSpec, Plan, RunState, Note)


def compiled() -> set[str]:
    """The modules by their dotted names."""
    document = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    hook = document["tool"]["hatch"]["build"]["targets"]["wheel"]["hooks"]["custom"]
    src = ROOT / "src"
    paths = {path.relative_to(src) for pattern in hook["modules"] for path in src.glob(pattern)}
    return {".".join(path.with_suffix("").parts) for path in paths if path.as_posix() not in hook["interpreted"]}


def dataclasses_in(kind: Any, seen: set[Any]) -> Iterator[type]:
    """All that a value of this type may hold, itself included."""
    if kind in seen:
        return
    seen.add(kind)
    inner = get_args(kind)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        yield kind
        inner = tuple(get_type_hints(kind).values())
    for one in inner:
        yield from dataclasses_in(one, seen)


def test_every_module_of_the_list_is_there() -> None:
    assert {"medley.roles.run", "medley.runtimes.simulated.kernel"} <= compiled()
    assert all((ROOT / "src" / (name.replace(".", "/") + ".py")).is_file() for name in compiled())


def test_what_is_decoded_stays_interpreted() -> None:
    seen: set[Any] = set()
    found = {cls.__module__ for kind in DECODED for cls in dataclasses_in(kind, seen)}
    assert "medley.roles.ledger" in found, "a run's state holds its ledger"
    assert not found & compiled()
