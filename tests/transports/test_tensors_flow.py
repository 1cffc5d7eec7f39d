"""The two ends of a chunk stream without sockets: order, credit, damage, pace."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medley.transports.tensors.flow import Gather, Incoming, Landing, Outgoing
from medley.transports.tensors.pace import CHUNK_NBYTES_MIN, Pace
from medley.transports.tensors.wire import Flag, Frame, Type

FAST = 1e9


@given(st.lists(st.binary(max_size=20), max_size=8), st.data())
def test_gathered_buffers_read_as_one(buffers: list[bytes], data: st.DataObject) -> None:
    whole = b"".join(buffers)
    gather = Gather(buffers)
    assert gather.nbytes == len(whole)
    if whole:
        start = data.draw(st.integers(0, len(whole) - 1))
        nbytes = data.draw(st.integers(1, len(whole) - start))
        assert bytes(gather.slice(start, nbytes)) == whole[start : start + nbytes]


def test_a_buffer_with_gaps_is_refused() -> None:
    with pytest.raises(ValueError, match="contiguous"):
        Gather([memoryview(b"abcdef")[::2]])


def receiver(nbytes: int, window: int, resends: int = 3) -> Incoming:
    return Incoming(memoryview(bytearray(nbytes)), 0, window, window, resends)


@settings(deadline=None)
@given(
    st.binary(min_size=1, max_size=400),
    st.integers(1, 60),
    st.integers(1, 5),
    st.sets(st.integers(0, 20), max_size=3),
)
def test_damage_is_asked_for_again_and_the_object_is_right(
    data: bytes, chunk: int, window_chunks: int, damaged: set[int]
) -> None:
    wire: list[tuple[Frame, bytes]] = []

    def send(frame: Frame, part: object) -> bool:
        wire.append((frame, bytes(part)))  # type: ignore[arg-type]
        return True

    out = Outgoing(send, 1, Gather([data]), Pace(FAST), chunk)
    into = receiver(len(data), chunk * window_chunks)
    out.credit(Frame(Type.CREDIT, 1, total=into.grant()), 0.0)
    out.pump(0.0)
    count = 0
    while not into.whole:
        assert wire, "the stream stalled"
        assert out.in_flight <= chunk * window_chunks
        frame, part = wire.pop(0)
        view = into.landing(frame)
        flags = Flag.NONE
        if view is None:
            continue
        bad = count in damaged
        count += 1
        view[:] = part if not bad else bytes(len(part))[:-1] + bytes([part[-1] ^ 1])
        if into.landed(frame, len(part), view) is Landing.DAMAGED:
            flags = Flag.REWIND
        out.credit(Frame(Type.CREDIT, 1, flags, offset=into.have, total=into.grant()), 0.0)
        out.pump(0.0)
    assert bytes(into.buffer) == data


@pytest.mark.parametrize(
    "frame",
    [
        Frame(Type.CHUNK, 1, offset=0, length=0),
        Frame(Type.CHUNK, 1, offset=0, length=41),
        Frame(Type.CHUNK, 1, offset=8, length=8),
        Frame(Type.CHUNK, 1, offset=0, length=2**63),
        Frame(Type.CHUNK, 1, offset=2**63, length=2**63),
    ],
    ids=["empty", "beyond credit", "early", "huge", "overflow"],
)
def test_a_chunk_out_of_place_has_nowhere_to_land(frame: Frame) -> None:
    into = receiver(100, 40)
    into.grant()
    assert into.landing(frame) is None


def test_a_length_that_lies_is_damage_until_the_resends_are_used_up() -> None:
    into = receiver(100, 40, resends=1)
    into.grant()
    frame = Frame(Type.CHUNK, 1, offset=0, length=10)
    view = into.landing(frame)
    assert view is not None
    assert into.landed(frame, 4, view) is Landing.DAMAGED
    assert into.landed(frame, 11, view) is Landing.HOPELESS
    assert into.have == 0


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1), st.sampled_from(Flag))
def test_a_credit_that_lies_sends_nothing_beyond_the_object(offset: int, total: int, flags: Flag) -> None:
    sent: list[Frame] = []
    out = Outgoing(lambda frame, part: sent.append(frame) is None, 1, Gather([b"x" * 100]), Pace(FAST), 40)
    out.credit(Frame(Type.CREDIT, 1, flags, offset=offset, total=total), 0.0)
    out.pump(0.0)
    assert all(frame.offset + frame.length <= 100 for frame in sent)
    assert 0 <= out.acked <= out.sent <= 100


def test_a_slow_link_gets_small_chunks_and_more_patience() -> None:
    slow, fast = Pace(20_000.0), Pace(FAST)
    assert slow.chunk_nbytes(1 << 20) == CHUNK_NBYTES_MIN
    assert fast.chunk_nbytes(1 << 20) == 1 << 20
    assert slow.window_nbytes(1 << 20) == 2 * CHUNK_NBYTES_MIN
    assert slow.patience_s(2 * CHUNK_NBYTES_MIN, 5.0, 2.0) > 5.0
    assert fast.patience_s(1 << 23, 5.0, 2.0) == 5.0


def test_pace_climbs_by_doubling_and_falls_by_weight() -> None:
    pace = Pace(1000.0)
    pace.acknowledged(1_000_000, 0.001)
    assert pace.bandwidth_bytes_per_s == 2000.0
    pace.acknowledged(1000, 1.0)
    assert 1000.0 < pace.bandwidth_bytes_per_s < 2000.0
    pace.acknowledged(0, 1.0)
    assert pace.bandwidth_bytes_per_s > 1000.0
