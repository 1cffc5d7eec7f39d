"""Plays every transcript of this folder: a front, event by event. Written by hand, and never regenerated.

given front machines=n0+n1+n2 pins=n0:2+n1:2+n2:2    three machines serve six layers
> asked 1 [1 2 3] limit=4                            an event ...
< n0 Pass b1 1@0+3:1 [1 2 3] opens=[1]               ... and exactly what follows from it, in order
< why a part of the sentence                         (sentences only where a transcript wants one)
>> tick 0.1                                          an event whose effects do not matter here; time goes on
"""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.scenarios.notation import split
from tests.scenarios.serving.front_stage import FrontStage, open_front
from tests.scenarios.test_transcripts import expect

HERE = Path(__file__).parent


@pytest.mark.parametrize("path", sorted(HERE.glob("*.txt")), ids=lambda p: p.stem)
def test_transcript(path: Path) -> None:
    stage: FrontStage | None = None
    waiting: list[tuple[str, str]] = []
    where = ""
    for number, text in enumerate([*path.read_text(encoding="utf-8").splitlines(), "> end"], 1):
        sign, _, rest = text.split(" # ")[0].strip().partition(" ")
        if not sign or sign.startswith("#"):
            continue
        if sign == "<":
            waiting = expect(waiting, rest, f"{path.name}:{number}")
            continue
        left = [f"{who} {what}" for who, what in waiting if who != "why"]
        assert not left, f"{path.name}:{number}: from {where!r} there also followed:\n  " + "\n  ".join(left)
        waiting, where = [], rest
        if rest == "end":
            return
        if sign == "given":
            stage = open_front(dict(option.split("=", 1) for option in rest.split()[1:]))
            continue
        assert stage is not None, "a transcript begins with `given`"
        shown = [stage.show(effect) for effect in stage.event(split(rest))]
        waiting = shown if sign == ">" else []
