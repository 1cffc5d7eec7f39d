"""Two stages time the way between them: empty posts, then a large one; whatever else comes changes nothing."""

from __future__ import annotations

import pytest

from medley.protocol.ids import NS_PER_S
from medley.protocol.messages import Address
from medley.protocol.stages.events import Post, Said
from medley.protocol.stages.words import Echo, Knock, Reach, Reached
from medley.roles.stage_reach import Reaching

HERE, THERE = Address("tcp://here", "h"), Address("tcp://there", "t")
ASKED = Reach(7, THERE, HERE, 1 << 20)
MS = NS_PER_S // 1000


def walk(here: Reaching, there: Reaching, first_ms: int, rtt_ms: int, nbytes_per_ms: int) -> Post | Said | None:
    """Posts back and forth until one side says what it found."""
    now, said = 0, here.heard(ASKED, 0)
    took = first_ms
    while isinstance(said, Post):
        assert said.to == THERE and isinstance(said.word, Knock)
        now += (took + said.word.nbytes // nbytes_per_ms) * MS
        answer = there.heard(said.word, now)
        assert isinstance(answer, Post) and answer.to == HERE and isinstance(answer.word, Echo)
        said, took = here.heard(answer.word, now), rtt_ms
    return said


def test_a_connection_that_must_be_opened_first_does_not_count() -> None:
    said = walk(Reaching(), Reaching(), first_ms=400, rtt_ms=10, nbytes_per_ms=1 << 14)
    assert isinstance(said, Said) and isinstance(said.word, Reached)
    assert said.word.rtt_s == pytest.approx(0.010)
    assert said.word.bandwidth_bytes_per_s == pytest.approx((1 << 14) * 1000)


def test_an_answer_to_another_question_is_not_taken() -> None:
    here = Reaching()
    assert here.heard(Echo(7, 0), 5) is None
    here.heard(ASKED, 10)
    assert here.heard(Echo(6, 0), 20) is None
    assert here.heard(Echo(7, 3), 20) is None
    assert isinstance(here.heard(Echo(7, 0), 20), Post)
    assert here.heard(Echo(7, 0), 30) is None


def test_a_newer_question_replaces_one_that_was_never_answered() -> None:
    here = Reaching()
    here.heard(ASKED, 0)
    again = Reach(8, THERE, HERE, 100)
    assert here.heard(again, 5) == Post(THERE, Knock(8, 0, HERE, 0))
    assert here.heard(Echo(7, 0), 9) is None
