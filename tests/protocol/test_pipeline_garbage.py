"""Posts from a hostile peer: whatever the bytes are, a word that keeps its type's promises comes out, or FrameError."""

from __future__ import annotations

import dataclasses
import struct
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from medley.protocol.errors import FrameError
from medley.protocol.messages import Address
from medley.protocol.stages.words import (
    HOPS_MAX,
    LOGPROBS_MAX,
    ROWS_MAX,
    TOKENS_MAX,
    WORD_NBYTES_MAX,
    Alive,
    Alternative,
    AskHeld,
    Draw,
    Drawn,
    Held,
    Hop,
    Layout,
    Load,
    Measured,
    Missing,
    Opening,
    Pass,
    Position,
    Probe,
    Reached,
    Replicate,
    Row,
    Shadow,
    StageStatus,
    Unload,
    Word,
    body_nbytes,
    pack,
    tokens_of,
    unpack,
)

INT64 = st.integers(-(2**63), 2**64 - 1)
st.register_type_strategy(int, INT64)
st.register_type_strategy(float, st.floats(allow_nan=False))
WORDS = get_args(Word)
PASS = Pass(
    3, 7, 1, (Row(1, 0, 4, 1), Row(2, 9, 1, 1)), (Opening(1, 0.7, 0.9, 40, 5, 0, -1, 0, 0),), (8,), "bf16", 9, (5,)
)
LAYOUT = Layout(3, (Hop(0, "n", Address("tcp://127.0.0.1:1", "k"), 0, 4),), Address("tcp://127.0.0.1:2", "k"), "int8")
DRAWN = Drawn(3, 7, (Draw(1, 5, 17, -0.5, (Alternative(17, -0.5),)),), (5, 6))
SOME = st.sampled_from([PASS, LAYOUT, DRAWN])


def words() -> st.SearchStrategy[Any]:
    return st.sampled_from(WORDS).flatmap(st.from_type)


def post_of(name: str, fields: Any) -> memoryview:
    body = msgspec.msgpack.encode((name, fields))
    return memoryview(struct.pack("<I", len(body)) + body)


def promises(word: Any) -> None:
    """What every receiver counts on."""
    assert isinstance(word, WORDS)
    pack(word)
    if isinstance(word, Pass):
        assert 0 < len(word.rows) <= ROWS_MAX
        assert 0 < tokens_of(word) <= TOKENS_MAX
        assert all(row.start >= 0 and row.count > 0 and 0 <= row.samples <= row.count for row in word.rows)


def opened(post: bytes | memoryview) -> bool:
    """Whether there was a word in it."""
    try:
        word, _ = unpack(memoryview(post))
    except FrameError:
        return False
    promises(word)
    return True


@given(words(), st.binary(max_size=64))
def test_every_word_comes_back_or_was_never_a_sensible_one(word: Any, behind: bytes) -> None:
    post = memoryview(pack(word) + behind)
    if not opened(post):
        return
    found, body = unpack(post)
    assert found == word
    assert bytes(body) == behind


ADDRESS = Address("tcp://127.0.0.1:1", "k")
FAST = (0.1, 0.1, 0.1)


@pytest.mark.parametrize(
    "word",
    [
        Load(1, "{}", 2, 2, 0),
        Unload(1, -1, 2),
        Replicate(1, 3, 2, "n", ADDRESS),
        AskHeld(1, 0, -2, -1),
        Shadow(ADDRESS, 1, 0, 2, -4, 1, 1, 1, "fp32"),
        Missing("n", 1, 3, 3, 4),
        Missing("n", 1, 0, 3, -4),
        Layout(1, (Hop(0, "n", ADDRESS, 3, 1),), ADDRESS, "bf16"),
        Layout(1, (Hop(0, "n", ADDRESS, 0, 1),) * (HOPS_MAX + 1), ADDRESS, "bf16"),
        Probe(1, 1, -1),
        Alive(1, 1, HOPS_MAX, 5),
        Measured(1, (0.0, 0.1, 0.1), FAST, 1),
        Measured(1, FAST, (float("nan"), 0.1, 0.1), 1),
        Measured(1, FAST, FAST, -1),
        Reached(1, float("inf"), 1.0),
        Held(1, 1, (Position(1, -1),)),
        Drawn(1, 1, (Draw(1, 1, -1, 0.0, ()),), ()),
        Drawn(1, 1, (Draw(1, 1, 2**32, 0.0, ()),), ()),
        Drawn(1, 1, (Draw(1, 1, 1, float("nan"), ()),), ()),
        Drawn(1, 1, (Draw(1, 1, 1, 0.0, (Alternative(1, 0.0),) * (LOGPROBS_MAX + 1)),), ()),
        StageStatus("n", 1, (), float("nan"), 0.0, 0, 0, 0, 0, 0),
    ],
)
def test_a_word_that_nobody_could_work_with_is_refused(word: Any) -> None:
    with pytest.raises(FrameError, match="makes no sense"):
        unpack(memoryview(pack(word)))


def test_sensible_words_pass() -> None:
    for word in (
        Load(1, "{}", 0, 2, 0),
        Missing("n", 1, 0, 3, 0),
        LAYOUT,
        DRAWN,
        Alive(1, 1, 0, 0),
        Measured(1, FAST, FAST, 0),
        Held(1, 1, (Position(1, 0),)),
    ):
        assert unpack(memoryview(pack(word)))[0] == word


@given(st.binary(max_size=400))
def test_random_bytes(noise: bytes) -> None:
    opened(noise)
    opened(struct.pack("<I", len(noise)) + noise)


@given(SOME, st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 255)), min_size=1, max_size=4))
def test_bytes_that_were_changed_on_purpose(word: Any, changes: list[tuple[int, int]]) -> None:
    post = bytearray(pack(word))
    for place, value in changes:
        post[place % len(post)] = value
    opened(bytes(post))


@given(words(), st.integers(0, 2**16))
def test_a_word_that_was_cut_short(word: Any, cut: int) -> None:
    post = pack(word)
    assert not opened(post[: cut % len(post)])


@given(words(), st.integers(1, 2**32 - 1), st.binary(max_size=8))
def test_a_length_that_lies(word: Any, more: int, behind: bytes) -> None:
    post = pack(word)
    claimed = (len(post) - 4 + more) % 2**32
    assume(claimed != len(post) - 4)
    assert not opened(struct.pack("<I", claimed) + post[4:] + behind) or claimed <= len(post) - 4 + len(behind)


def test_a_claim_beyond_every_limit_costs_no_memory() -> None:
    for claimed in (WORD_NBYTES_MAX + 1, 2**31, 2**32 - 1):
        assert not opened(struct.pack("<I", claimed) + b"x" * 100)
    assert not opened(struct.pack("<I", WORD_NBYTES_MAX + 1) + bytes(WORD_NBYTES_MAX + 1))
    # An array that claims to have four thousand million members.
    assert not opened(struct.pack("<I", 16) + b"\x92\xa4Free" + b"\x81\xa8requests"[:5] + b"\xdd\xff\xff\xff\xff")


@pytest.mark.parametrize("depth", [100, 10_000, 200_000])
@pytest.mark.parametrize("shell", [b"\x91", b"\x81\xa1a"], ids=["lists", "maps"])
def test_nests_without_end(depth: int, shell: bytes) -> None:
    body = b"\x92\xa4Free" + shell * depth + b"\xc0"
    assert not opened(struct.pack("<I", len(body)) + body)
    inside = b"\x92\xa4Free\x81\xa8requests" + shell * depth + b"\xc0"
    assert not opened(struct.pack("<I", len(inside)) + inside)


@pytest.mark.parametrize("kind", WORDS, ids=lambda kind: kind.__name__)
@given(data=st.data())
def test_a_field_of_another_type_is_refused(kind: type, data: st.DataObject) -> None:
    word = data.draw(st.from_type(kind))
    fields = {field.name: getattr(word, field.name) for field in dataclasses.fields(word)}
    name = data.draw(st.sampled_from(sorted(fields)))
    wrong: list[Any] = ["", b"", [], {}, None, 1.5, True, -1, [None], ["x"], [[]], {"x": 1}]
    fields[name] = data.draw(st.sampled_from([one for one in wrong if type(one) is not type(fields[name])]))
    post = post_of(kind.__name__, fields)
    try:
        found, _ = unpack(post)
    except FrameError:
        return
    promises(found)
    assert type(getattr(found, name)) is type(getattr(word, name)), "it became what the field may hold"


@pytest.mark.parametrize("generation", [None, "3", 3.5, True, [3], {"n": 3}, 2**64 - 1, -1])
def test_a_generation_is_a_number(generation: Any) -> None:
    fields = {field.name: getattr(PASS, field.name) for field in dataclasses.fields(PASS)}
    assert opened(post_of("Pass", fields | {"generation": generation})) == (type(generation) is int)


@given(st.text(max_size=30))
def test_an_unknown_word_is_refused(name: str) -> None:
    assume(name not in {kind.__name__ for kind in WORDS})
    assert not opened(post_of(name, {}))


@given(st.from_type(Pass))
def test_what_follows_a_pass_is_never_a_surprise(word: Pass) -> None:
    """Bytes are counted in integers that cannot overflow, so a receiver may compare before it allocates."""
    if opened(pack(word)):
        nbytes = body_nbytes(word)
        assert nbytes <= 4 * TOKENS_MAX * max(1, word.width + 1)
