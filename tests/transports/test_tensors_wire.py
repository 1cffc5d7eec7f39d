"""Frames and headers: what was encoded decodes, anything else is refused with one kind of error."""

from __future__ import annotations

import contextlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medley.protocol.errors import FrameError
from medley.transports.tensors import Header, Kind, digest_of
from medley.transports.tensors.wire import (
    HEADER_NBYTES,
    Flag,
    Frame,
    Type,
    decode_frame,
    decode_header,
    encode_header,
    identity_of,
)

u64 = st.integers(0, 2**64 - 1)
frames = st.builds(
    Frame, st.sampled_from(Type), u64, st.sampled_from([Flag.NONE, Flag.REWIND, Flag.BUSY]), u64, u64, u64, u64
)
count = st.integers(0, 2**63 - 1)
headers = st.builds(
    Header,
    kind=st.sampled_from(Kind),
    run=st.text(max_size=256),
    name=st.text(max_size=256),
    generation=count,
    version=count,
    sequence=count,
    nbytes=count,
    digest=st.sampled_from([b"", b"d" * 16]),
)


@given(frames)
def test_a_frame_survives_the_wire(frame: Frame) -> None:
    raw = frame.encode()
    assert len(raw) == HEADER_NBYTES
    assert decode_frame(raw) == frame


@given(st.binary(max_size=200))
def test_garbage_is_a_frame_error(raw: bytes) -> None:
    with pytest.raises(FrameError):
        decode_frame(raw)


@given(frames, st.integers(0, HEADER_NBYTES * 8 - 1))
def test_any_flipped_bit_is_noticed(frame: Frame, bit: int) -> None:
    raw = bytearray(frame.encode())
    raw[bit // 8] ^= 1 << bit % 8
    with pytest.raises(FrameError):
        decode_frame(bytes(raw))


@given(headers)
def test_a_header_survives_the_wire(header: Header) -> None:
    assert decode_header(encode_header(header)) == header


@given(st.binary(max_size=300))
def test_garbage_bodies_decode_to_a_header_or_a_frame_error(body: bytes) -> None:
    with contextlib.suppress(FrameError):
        assert isinstance(decode_header(body), Header)


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": "update", "run": "r", "colour": "red"},
        {"kind": "pickle", "run": "r"},
        {"kind": "update", "run": "r" * 257},
        {"kind": "update", "run": "r", "nbytes": -1},
        {"kind": "update", "run": "r", "nbytes": 2**63},
        {"kind": "update", "run": "r", "digest": b"short"},
        {"kind": "update"},
        ["update", "r"],
    ],
)
def test_a_header_out_of_bounds_is_refused(fields: object) -> None:
    with pytest.raises(FrameError):
        decode_header(msgspec.msgpack.encode(fields))


def test_an_oversized_body_is_refused_before_it_is_parsed() -> None:
    with pytest.raises(FrameError, match="over"):
        decode_header(b"\x00" * 70_000)


def test_identity_follows_every_field() -> None:
    header = Header(kind=Kind.UPDATE, run="r", name="n", nbytes=4, digest=digest_of([b"abcd"]))
    assert identity_of(header) == identity_of(msgspec.structs.replace(header))
    assert identity_of(header) != identity_of(msgspec.structs.replace(header, sequence=1))


def test_a_digest_does_not_depend_on_the_cuts() -> None:
    assert digest_of([b"ab", b"", b"cd"]) == digest_of([b"abcd"])
