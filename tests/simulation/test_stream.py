"""What a stream remembers of its codec: the newest of what is said again and again, and nothing that is out of date."""

from __future__ import annotations

from dataclasses import replace

import pytest

from medley.protocol import messages as m
from medley.protocol import wire
from medley.protocol.errors import FrameError
from medley.runtimes.simulated.stream import Way

STATUS = m.WorkerStatus("job", 1, (1, 2), (), "computing")
BEAT = m.Heartbeat("w1", (STATUS,), ())
UPDATE = m.UpdateReady("job", 1, "w1/1/1", (1,), 0, 0, 8.0, 4.0, 0.0, 8, 64, 1.0, 2, 0.0, True)
CHANGED = (
    replace(BEAT, workers=(replace(STATUS, leases=(2, 3)),)),
    replace(BEAT, workers=(replace(STATUS, phase="idle"),)),
    replace(BEAT, workers=()),
)


def test_the_same_message_is_the_same_bytes() -> None:
    way = Way("w1", "coordinator")
    for message in (BEAT, UPDATE):
        assert way.encode(message) is way.encode(message)
        assert way.encode(message) == wire.encode(message)


@pytest.mark.parametrize("changed", CHANGED)
def test_a_message_that_changed_is_encoded_and_decoded_anew(changed: m.Heartbeat) -> None:
    way = Way("w1", "coordinator")
    for message in (BEAT, changed, UPDATE, replace(UPDATE, weight=9.0), BEAT, changed):
        data = way.encode(message)
        assert data == wire.encode(message)
        assert way.decode(data) == message


def test_an_equal_message_that_is_another_object_is_the_same_bytes() -> None:
    way = Way("w1", "coordinator")
    assert way.encode(BEAT) == way.encode(replace(BEAT, workers=(replace(STATUS),)))


def test_a_message_may_go_while_its_bytes_are_remembered() -> None:
    """A new object in the place of an old one must not be taken for it."""
    way = Way("w1", "coordinator")
    for lease in range(200):
        data = way.encode(replace(BEAT, workers=(replace(STATUS, leases=(lease,)),)))
        assert way.decode(data).workers[0].leases == (lease,)


def test_damaged_bytes_are_refused_however_much_they_are_like_the_last_ones() -> None:
    way = Way("w1", "coordinator")
    data = way.encode(BEAT)
    assert way.decode(data) == BEAT
    with pytest.raises(FrameError):
        way.decode(data[:-1])
    assert way.decode(data) == BEAT
