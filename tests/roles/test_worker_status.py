"""What a worker says of itself is the same object for as long as it is true, and no longer."""

from __future__ import annotations

from medley.protocol import engine as e
from medley.protocol import messages as m
from medley.protocol.events import EngineSaid, Tick, Told
from medley.roles.worker import Worker

S = 1_000_000_000


def ready() -> Worker:
    worker = Worker("w1", "1", m.AssignWorker("job", 1, "{}", 1))
    worker.start()
    worker.handle(EngineSaid(e.Opened(m.Address("tcp://w1", "key"))), 0)
    worker.handle(Told(m.Routes("job", 1, (), m.Address("", ""))), 0)
    worker.handle(EngineSaid(e.Loaded(1, -1)), 0)
    return worker


def lease(number: int) -> Told:
    return Told(m.Lease("job", 1, number, m.Span(0, 8 * number, 8 * number + 8), 1, 0))


def test_time_alone_changes_nothing() -> None:
    worker = ready()
    said = worker.status()
    for second in range(10):
        worker.handle(Tick(), second * S)
        assert worker.status() is said


def test_each_event_that_changes_something_is_told() -> None:
    worker = ready()
    assert worker.status().leases == ()
    worker.handle(lease(1), 0)
    assert (worker.status().leases, worker.status().phase) == ((1,), "wanting")
    worker.handle(lease(2), 0)
    assert worker.status().leases == (1, 2)
    worker.handle(Told(m.Base("job", 1, 1, 0, 0.1)), 0)
    assert worker.status().phase == "pulling"
    worker.handle(EngineSaid(e.Pulled(1, 0, 8)), 0)
    assert worker.status().phase == "computing"
    worker.handle(EngineSaid(e.Computed(worker.computing, 8.0, 4.0, 0.0, 8, 64, 1.0, 2, 0.0, True)), 0)
    assert (worker.status().updates, worker.status().leases) == (("w1.1.1",), (1, 2))
    worker.handle(Told(m.Outcome("job", 1, "w1.1.1", "committed", 1, "")), 0)
    assert (worker.status().updates, worker.status().leases) == ((), (2,))
    worker.handle(Told(m.Revoke("job", 1, (2,), "given to somebody else")), 0)
    assert (worker.status().leases, worker.status().phase) == ((), "idle")


def test_a_new_generation_is_told_at_once() -> None:
    worker = ready()
    assert worker.status().generation == 1
    worker.handle(Told(m.AssignWorker("job", 2, "{}", 1)), 0)
    assert worker.status().generation == 2


def test_an_engine_that_died_holds_nothing() -> None:
    worker = ready()
    worker.handle(lease(1), 0)
    assert worker.status().leases == (1,)
    worker.handle(EngineSaid(e.EngineExited("killed", False)), 0)
    assert (worker.status().leases, worker.status().phase) == ((), "idle")
