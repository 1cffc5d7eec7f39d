"""Plays every transcript of this folder. They are written by hand, from what Medley promises, and never regenerated.

given coordinator workers=2 mode=sync     the role, and what the job is
> w1 UpdateReady update=u leases=[1]       an event ...
< log Committed ...                        ... and exactly what follows from it, in order
< why a part of the sentence               (sentences only where a transcript wants one)
>> event                                   an event whose effects do not matter here
! crash after Committed                    the coordinator dies after (or before) that record was written
! settle                                   the machines answer what they were just told, until all are ready
"""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.scenarios.notation import split
from tests.scenarios.serving_stage import ServingStage
from tests.scenarios.stages import CoordinatorStage, RoleStage, open_stage

HERE = Path(__file__).parent


@pytest.mark.parametrize("path", sorted(HERE.glob("*.txt")), ids=lambda p: p.stem)
def test_transcript(path: Path) -> None:
    play(path)


def play(path: Path) -> None:
    stage: CoordinatorStage | RoleStage | ServingStage | None = None
    waiting: list[tuple[str, str]] = []
    where = ""
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        line = text.split(" # ")[0].strip()
        if not line or line.startswith("#"):
            continue
        sign, _, rest = line.partition(" ")
        if sign == "<":
            assert waiting, f"{path.name}:{number}: nothing follows any more from {where!r}; expected {rest!r}"
            waiting = expect(waiting, rest, f"{path.name}:{number}")
            continue
        left = [f"{who} {what}" for who, what in waiting if who != "why"]
        assert not left, f"{path.name}:{number}: from {where!r} there also followed:\n  " + "\n  ".join(left)
        waiting, where = [], rest
        if sign == "given":
            role, *options = rest.split()
            stage = open_stage(role, dict(o.split("=") for o in options))
            continue
        assert stage is not None, "a transcript begins with `given`"
        if sign == "!":
            _, *words = line.split()
            stage.settle() if words == ["settle"] else stage.crash(words[1], words[2])
            continue
        shown = [stage.show(effect) for effect in stage.event(split(rest))]
        waiting = [s for s in shown if s is not None] if sign == ">" else []
    left = [f"{who} {what}" for who, what in waiting if who != "why"]
    assert not left, f"{path.name}: from {where!r} there also followed:\n  " + "\n  ".join(left)


def expect(waiting: list[tuple[str, str]], rest: str, where: str) -> list[tuple[str, str]]:
    who, _, what = rest.partition(" ")
    what = " ".join(what.split())
    if who == "why":
        sentences = [text for kind, text in waiting if kind == "why"]
        assert any(what in text for text in sentences), f"{where}: no such reason among {sentences}"
        return waiting
    found = next((w for w in waiting if w[0] != "why"), None)
    assert found is not None, f"{where}: nothing follows any more; expected {who} {what}"
    same = (found[0], found[1].strip()) == (who, what)
    assert same, f"{where}:\n  expected {who} {what}\n  found    {found[0]} {found[1]}"
    left = list(waiting)
    left.remove(found)
    return left
