"""Who is here: one look for each machine, however often it came and went."""

from __future__ import annotations

from medley.protocol.ids import NS_PER_S
from medley.protocol.messages import Capability
from medley.roles.context import NodeView
from medley.roles.presence import Presence


def test_a_machine_that_comes_and_goes_is_found_silent_once() -> None:
    view = NodeView("a", "b", Capability(1, 1 << 30, "Linux", True, True), True, 0)
    presence = Presence({"a": view}, NS_PER_S)
    presence.watch(view, 0)
    for turn in range(1000):
        presence.away(view, turn)
        presence.back(view, turn)
    assert presence.silent(NS_PER_S // 2) == []
    assert presence.silent(3600 * NS_PER_S) == [view]
    presence.away(view, 3600 * NS_PER_S)
    presence.back(view, 3600 * NS_PER_S)
    assert presence.silent(7200 * NS_PER_S) == [view]
