"""Every message of the control plane survives the wire, and nothing else gets through it."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medley.protocol import medley_pb2, wire
from medley.protocol.codec import Codec, text
from medley.protocol.doors import Answer, JoinReply, JoinRequest, Question
from medley.protocol.errors import FrameError
from medley.protocol.messages import (
    Address,
    AssignWorker,
    Drop,
    EngineDown,
    EngineUp,
    FromNode,
    Heartbeat,
    Member,
    Outcome,
    Relay,
    Revoke,
    ToNode,
    UpdateReady,
    Welcome,
)
from medley.protocol.records import HeldoutMeasured, Record

MESSAGES = wire.members(FromNode | ToNode)
DOORS = (JoinRequest, JoinReply, Question, Answer)
PB: Any = medley_pb2
INTS = st.integers(-(2**63), 2**63 - 1)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


def values(hint: Any) -> st.SearchStrategy[Any]:
    """Any value that a field of this type may have."""
    if get_origin(hint) is tuple:
        return st.lists(values(get_args(hint)[0]), max_size=4).map(tuple)
    if get_origin(hint) is Literal:
        return st.sampled_from(get_args(hint))
    if dataclasses.is_dataclass(hint):
        return st.builds(hint, **{name: values(kind) for name, kind in get_type_hints(hint).items()})
    plain = {
        int: INTS,
        float: st.floats(allow_nan=False, allow_infinity=False),
        bool: st.booleans(),
        str: TEXTS,
        bytes: st.binary(max_size=50),
    }
    return plain[hint]


@pytest.mark.parametrize("cls", MESSAGES, ids=lambda cls: cls.__name__)
@settings(max_examples=25, deadline=None)
@given(st.data())
def test_every_message_round_trips(cls: Any, data: st.DataObject) -> None:
    message = data.draw(values(cls))
    cause, term = data.draw(TEXTS), data.draw(st.integers(0, 2**64 - 1))
    assert wire.decode(wire.encode(message, cause=cause, term=term)) == wire.Envelope(message, cause, term)


@pytest.mark.parametrize("cls", DOORS, ids=lambda cls: cls.__name__)
@settings(max_examples=25, deadline=None)
@given(st.data())
def test_every_request_of_the_doors_round_trips(cls: Any, data: st.DataObject) -> None:
    value = data.draw(values(cls))
    assert wire.decode_plain(cls, wire.encode_plain(value)) == value


@given(st.binary(max_size=300))
def test_garbage_is_refused_or_is_a_message(data: bytes) -> None:
    try:
        envelope = wire.decode(data)
    except FrameError:
        return
    assert isinstance(envelope.message, MESSAGES)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_damaged_message_is_refused_or_is_a_message(data: st.DataObject) -> None:
    good = wire.encode(data.draw(values(data.draw(st.sampled_from(MESSAGES)))), cause="c", term=1)
    at = data.draw(st.integers(0, len(good) - 1))
    change = data.draw(st.binary(max_size=4))
    try:
        envelope = wire.decode(good[:at] + change + good[at + len(change) :])
    except FrameError:
        return
    assert isinstance(envelope.message, MESSAGES)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_crosses_in_no_direction(number: float) -> None:
    message = UpdateReady("j", 1, "n.b.1", (1,), 4, 3, 1.0, number, 0.0, 1, 1, 0.1, 1, 0.0, False)
    with pytest.raises(FrameError, match="'loss_sum' is not a finite number"):
        wire.encode(message)
    body = PB.UpdateReady(job="j", loss_sum=number)
    with pytest.raises(FrameError, match="'loss_sum' is not a finite number"):
        wire.decode(PB.Envelope(update_ready=body).SerializeToString())


def test_the_log_takes_no_number_that_it_could_not_read_again() -> None:
    with pytest.raises(FrameError, match="HeldoutMeasured"):
        Codec(Record).to_json(HeldoutMeasured(1, math.nan, 1, 0.0, 0))
    with pytest.raises(FrameError):
        text(HeldoutMeasured(1, math.inf, 1, 0.0, 0))


LIMIT = wire.MAX_TEXT_NBYTES


@pytest.mark.parametrize(
    ("message", "why"),
    [
        (EngineDown("j", 1, -1, "x" * (LIMIT + 1), False), "'reason' is over the limit"),
        (EngineDown("j", 1, -1, "é" * (LIMIT // 2 + 1), False), "'reason' is over the limit"),
        (AssignWorker("j", 1, "x" * (wire.MAX_DOCUMENT_NBYTES + 1), 0), "'plan' is over the limit"),
        (Drop("j", 1, 0, ("k" * (LIMIT + 1),)), "'updates' is over the limit"),
        (Revoke("j", 1, tuple(range(wire.MAX_ITEMS + 1)), ""), "'leases' has 65537 items"),
        (Drop("j", 1, 0, ("x" * 60_000,) * 300), "over the limit of 16777216"),
        (Outcome("j", 1, "u", "maybe", 1, ""), "'verdict' must be one of"),  # type: ignore[arg-type]
        (EngineDown("j", 2**63, -1, "", False), "cannot be encoded"),
        (EngineDown("j", "one", -1, "", False), "cannot be encoded"),  # type: ignore[arg-type]
        (EngineDown("j", 1, -1, "\ud800", False), "cannot be encoded"),
        (Member("u", 1.0), "Member is not a control message"),
    ],
)
def test_what_a_peer_would_refuse_is_never_sent(message: Any, why: str) -> None:
    with pytest.raises(FrameError, match=why):
        wire.encode(message)


def test_the_largest_that_is_allowed_passes() -> None:
    for message in (
        EngineDown("j", 1, -1, "é" * (LIMIT // 2), False),
        AssignWorker("j", 1, "x" * wire.MAX_DOCUMENT_NBYTES, 0),
        Revoke("j", 1, tuple(range(wire.MAX_ITEMS)), ""),
    ):
        assert wire.decode(wire.encode(message)).message == message
    with pytest.raises(FrameError, match="'cause'"):
        wire.encode(Welcome(1, 1), cause="x" * (LIMIT + 1))


def envelope(**fields: Any) -> bytes:
    return PB.Envelope(**fields).SerializeToString()


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "without a message"),
        (envelope(cause="x", term=3), "without a message"),
        (b"\x00" * (wire.MAX_NBYTES + 1), "over the limit"),
        (wire.encode(Welcome(1, 2)) + wire.encode(Heartbeat("n", (), ())), "says a thing twice"),
        (wire.encode(Welcome(1, 2)) + wire.encode(Welcome(1, 2)), "says a thing twice"),
        (envelope(outcome=PB.Outcome(verdict="perhaps")), "'verdict' must be one of"),
        (envelope(engine_up=PB.EngineUp(job="j")), "'address' is missing"),
        (envelope(engine_down=PB.EngineDown(reason="x" * (LIMIT + 1))), "'reason' is over"),
        (envelope(welcome=PB.Welcome(), cause="x" * (LIMIT + 1)), "'cause' is over"),
        (envelope(revoke=PB.Revoke(leases=range(wire.MAX_ITEMS + 1))), "'leases' has"),
        (wire.encode(Welcome(1, 2))[:-1], "not a message of the control plane"),
    ],
)
def test_what_a_hostile_peer_may_send(data: bytes, why: str) -> None:
    with pytest.raises(FrameError, match=why):
        wire.decode(data)


def test_nested_messages_are_present_even_when_empty() -> None:
    for message in (Relay("j", 1, 0, Address("", "")), EngineUp("j", 1, -1, Address("", ""))):
        assert wire.decode(wire.encode(message)).message == message


def test_a_field_that_a_newer_peer_appended_is_ignored() -> None:
    inner = PB.Welcome(term=7, heartbeat_ms=500).SerializeToString() + b"\x78\x05"  # field 15
    number = PB.Envelope.DESCRIPTOR.fields_by_name["welcome"].number
    tag = bytes([(number << 3 | 2) & 0x7F | 0x80, (number << 3 | 2) >> 7])
    assert wire.decode(tag + bytes([len(inner)]) + inner).message == Welcome(7, 500)


@pytest.fixture(scope="module")
def make_proto() -> ModuleType:
    path = Path(__file__).resolve().parents[2] / "tools" / "make_proto.py"
    spec = importlib.util.spec_from_file_location("make_proto", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_committed_contract_is_up_to_date(make_proto: ModuleType) -> None:
    committed = {path: (make_proto.SOURCE / path).read_text() for path in (make_proto.PROTO, make_proto.PB2)}
    proto = make_proto.proto()
    assert committed[make_proto.PROTO] == proto, "run tools/make_proto.py"
    if "grpc_tools" in sys.modules or importlib.util.find_spec("grpc_tools"):
        made = make_proto.generate()[make_proto.PB2]
        assert _without_version(made) == _without_version(committed[make_proto.PB2]), "run tools/make_proto.py"


def _without_version(text: str) -> str:
    """The generated code but for the release of its generator, which need not be the tests' own."""
    return text[text.index("DESCRIPTOR = ") :]
