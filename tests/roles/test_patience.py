"""What nobody answers is said again, each time after a longer wait, and soon where something is known to be lost."""

from __future__ import annotations

from medley.protocol import effects as fx
from medley.protocol import engine as e
from medley.protocol import messages as m
from medley.protocol.events import EngineSaid, Tick, Told
from medley.roles.patience import REPEAT_MAX_NS, REPEAT_NS, Patience
from medley.roles.worker import Worker

S = 1_000_000_000


def announced() -> Worker:
    """A worker that said at 0 that its first update is there, and has nothing else to do."""
    worker = Worker("w1", "1", m.AssignWorker("job", 1, "{}", 1))
    worker.start()
    for event in (
        EngineSaid(e.Opened(m.Address("tcp://w1", "key"))),
        Told(m.Routes("job", 1, (), m.Address("", ""))),
        EngineSaid(e.Loaded(1, -1)),
        Told(m.Lease("job", 1, 1, m.Span(0, 0, 8), 1, 0)),
        Told(m.Base("job", 1, 1, 0, 0.1)),
        EngineSaid(e.Pulled(1, 0, 8)),
        EngineSaid(e.Computed("w1.1.1", 8.0, 4.0, 0.0, 8, 64, 1.0, 2, 0.0, True)),
    ):
        worker.handle(event, 0)
    assert list(worker.pending) == ["w1.1.1"]
    return worker


def said(worker: Worker, seconds: range) -> list[int]:
    """The seconds at whose tick it announces its update and pushes it."""
    found = []
    for second in seconds:
        effects = worker.handle(Tick(), second * S)
        kinds = {type(x.message) for x in effects if isinstance(x, fx.Report)}
        if m.UpdateReady in kinds:
            assert any(isinstance(x, fx.Run) and isinstance(x.command, e.Push) for x in effects)
            found.append(second)
    return found


def test_each_wait_is_longer_and_none_is_over_a_minute() -> None:
    patience, waits, last = Patience(0), [], 0
    for second in range(1, 400):
        if patience.is_over(second * S):
            waits.append(second - last)
            last = second
    assert waits[0] * S > REPEAT_NS
    assert waits == sorted(waits)
    assert waits[-1] == waits[-2] == REPEAT_MAX_NS // S + 1  # asked once a second: the first one that is later


def test_an_update_that_nobody_decides_is_announced_ever_more_seldom() -> None:
    assert said(announced(), range(1, 180)) == [11, 52, 113, 174]


def test_a_push_that_failed_is_tried_again_soon() -> None:
    worker = announced()
    assert said(worker, range(1, 60)) == [11, 52]
    worker.handle(EngineSaid(e.Failed("push", "w1.1.1", "a link broke", False, False)), 60 * S)
    assert said(worker, range(60, 70)) == [63]


def test_a_new_stream_hears_everything_at_once() -> None:
    worker = announced()
    assert said(worker, range(1, 60)) == [11, 52]
    effects = worker.handle(Told(m.Welcome(1, 1000)), 60 * S)
    assert [x.message.update for x in effects if isinstance(x, fx.Report) and isinstance(x.message, m.UpdateReady)] == [
        "w1.1.1"
    ]
    assert said(worker, range(60, 80)) == [71]
