"""Who takes the layers of a machine that died, and who holds them in reserve."""

from __future__ import annotations

from medley.policies.pipeline.repair import Held, Part, repair, reserves

HOPS = (Part("a", 0, 3), Part("b", 3, 6))
ALL = frozenset(range(6))


def test_layers_go_to_whoever_holds_them() -> None:
    decision = repair(HOPS, [Held("a", frozenset({0, 1, 2})), Held("c", ALL)])
    assert decision.plan == (Part("a", 0, 3), Part("c", 3, 6))
    assert decision.reason == "c has layers 3 to 5 in reserve"


def test_one_machine_may_take_all_and_is_one_hop_then() -> None:
    assert repair(HOPS, [Held("c", ALL)]).plan == (Part("c", 0, 6),)


def test_a_machine_that_came_back_empty_or_works_for_others_is_not_there() -> None:
    b = Held("b", frozenset({3, 4, 5}))
    for a in (Held("a", frozenset()), Held("a", frozenset({0, 1, 2}), taken=True)):
        decision = repair(HOPS, [a, b])
        assert decision.plan is None
        assert decision.reason == "nobody else holds layers 0 to 2"


def test_reserves_are_on_machines_that_are_trusted_while_these_have_room() -> None:
    room = {"a": 9, "b": 9, "c": 30, "d": 6}
    assert reserves(HOPS, room, 2, {"a", "b", "d"}).plan == {HOPS[0]: "b", HOPS[1]: "a"}
    assert reserves(HOPS, room, 2, {"d"}).plan == {HOPS[0]: "d", HOPS[1]: "c"}
    assert reserves(HOPS, room, 2, set()).plan == dict.fromkeys(HOPS, "c")


def test_a_hop_that_finds_no_room_says_so() -> None:
    decision = reserves(HOPS, {"a": 0, "b": 6}, 2, {"a", "b"})
    assert decision.plan == {HOPS[0]: "b"}
    assert decision.reason.endswith("layers 3 to 5 have no reserve: no other machine has room for them")
