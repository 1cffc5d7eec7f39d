"""Time and order: what the whole simulator stands on."""

from __future__ import annotations

from medley.runtimes.simulated.kernel import Kernel


def test_calls_happen_in_order_of_time_then_of_asking() -> None:
    kernel, seen = Kernel(1), list[str]()
    kernel.after(20, seen.append, "late")
    kernel.after(10, seen.append, "first of two")
    kernel.after(10, seen.append, "second of two")
    kernel.after(0, seen.append, "now")
    assert not kernel.run(15)
    assert seen == ["now", "first of two", "second of two"]
    assert kernel.now == 15
    assert not kernel.run(100)
    assert seen[-1] == "late"


def test_what_is_due_now_comes_after_what_was_due_before() -> None:
    kernel, seen = Kernel(1), list[str]()

    def first() -> None:
        kernel.after(-5, seen.append, "asked for the past")
        seen.append("first")

    kernel.after(10, first)
    kernel.after(10, seen.append, "second")
    kernel.run(10)
    assert seen == ["first", "second", "asked for the past"]
    assert kernel.now == 10


def test_a_run_ends_where_it_is_told_and_goes_on_from_there() -> None:
    kernel, seen = Kernel(1), list[int]()
    for number in range(5):
        kernel.after(number, seen.append, number)
    assert kernel.run(10, lambda: len(seen) == 2)
    kernel.after(0, kernel.halt)
    assert kernel.run(10)
    assert seen == [0, 1]
    kernel.run(10)
    assert seen == [0, 1, 2, 3, 4]


def test_one_use_of_chance_does_not_move_another() -> None:
    alone, beside = Kernel(7), Kernel(7)
    beside.random("something else").random()
    assert [alone.random("a").random() for _ in range(3)] == [beside.random("a").random() for _ in range(3)]
    assert Kernel(8).random("a").random() != Kernel(7).random("a").random()


def test_the_cause_is_passed_on() -> None:
    kernel, seen = Kernel(1), list[int]()

    def note() -> None:
        seen.append(kernel.cause)

    def because() -> None:
        kernel.cause = 42
        kernel.after(1, note)

    kernel.after(1, because)
    kernel.after(1, note)
    kernel.run(10)
    assert seen == [0, 42]
