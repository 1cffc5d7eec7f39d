"""Posts: a word and the bytes behind it; what makes no sense is refused before anybody counts on it."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from medley.protocol.errors import FrameError
from medley.protocol.stages.words import (
    LOGPROBS_MAX,
    ROWS_MAX,
    TOKENS_MAX,
    WORD_NBYTES_MAX,
    Free,
    Opening,
    Pass,
    Row,
    body_nbytes,
    pack,
    unpack,
)

OPENING = Opening(1, 0.7, 0.9, 40, 5, 0, -1, 0, 0)
PASS = Pass(3, 7, 1, (Row(1, 0, 4, 1), Row(2, 9, 1, 1)), (OPENING,), (8,), "bf16", 64, (5,))


def test_a_word_and_what_follows_it_come_back() -> None:
    word, body = unpack(memoryview(pack(PASS) + b"behind"))
    assert word == PASS
    assert bytes(body) == b"behind"


@pytest.mark.parametrize(("wire", "nbytes"), [("tokens", 20), ("fp32", 1280), ("bf16", 640), ("int8", 340)])
def test_how_many_bytes_follow_a_pass_is_known(wire: Any, nbytes: int) -> None:
    assert body_nbytes(replace(PASS, wire=wire)) == nbytes


@pytest.mark.parametrize(
    "changes",
    [
        {"rows": ()},
        {"rows": (Row(1, 0, 1, 0),) * (ROWS_MAX + 1)},
        {"rows": (Row(1, 0, TOKENS_MAX + 1, 0),)},
        {"rows": (Row(1, -1, 1, 0),)},
        {"rows": (Row(1, 0, 1, 2),)},
        {"place": -1},
        {"opens": (OPENING,) * (ROWS_MAX + 1)},
        {"opens": (replace(OPENING, temperature=math.nan),)},
        {"opens": (replace(OPENING, top_p=math.nan),)},
        {"opens": (replace(OPENING, top_k=-1),)},
        {"opens": (replace(OPENING, logprobs=LOGPROBS_MAX + 1),)},
        {"opens": (replace(OPENING, donor_tokens=-1),)},
    ],
)
def test_a_pass_that_makes_no_sense_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(FrameError):
        unpack(memoryview(pack(replace(PASS, **changes))))


@pytest.mark.parametrize("post", [b"", b"\x01", b"\xff\xff\xff\xff", b"\x05\x00\x00\x00abcde", pack(PASS)[:-3]])
def test_bytes_that_are_no_word_are_refused(post: bytes) -> None:
    with pytest.raises(FrameError):
        unpack(memoryview(post))


def test_a_word_that_is_too_large_is_not_sent() -> None:
    with pytest.raises(FrameError):
        pack(Free(tuple(range(1 << 40, (1 << 40) + WORD_NBYTES_MAX // 8))))
