"""Which machines a front hears of, when, and what becomes of those that die, hang, leave, or are wanted elsewhere."""

from __future__ import annotations

from dataclasses import replace

from tests.roles.pool_of_stages import FRONT, JOB, PoolOfStages

from medley.protocol.effects import Send
from medley.protocol.events import Expel, Heard
from medley.protocol.hosting import BeginServing, EndServing, ReleaseMachines, ServingSpec, SuspectStage
from medley.protocol.messages import Address, AssignStage, EngineUp, Leave, Peers, PeersSet
from medley.protocol.spec import Schedule
from medley.protocol.stages.words import STAGE


def test_a_serving_gets_idle_machines_and_hears_of_them_once_all_admit_each_other() -> None:
    pool = PoolOfStages("a", "b")
    pool.begin()
    assert pool.usable == ["a", "b"]
    assert pool.machines["a"].admitted == pool.machines["b"].admitted == ("a-1", "b-1", "front-key")
    assert pool.machines["a"].told[-1].vault == FRONT  # type: ignore[union-attr]


def test_a_machine_may_not_be_used_before_every_other_one_admits_it() -> None:
    pool = PoolOfStages("a", "b")
    pool.machines["a"].slow = pool.machines["b"].deaf = True
    pool.begin()
    pool.opens("a")
    assert pool.usable == []
    stage = pool.hosting.stages["b"]
    pool.say(Heard("b", PeersSet(JOB, stage.generation, STAGE, pool.hosting.shared.lists.last)))
    assert pool.usable == ["a", "b"]


def test_an_acknowledged_list_that_lacks_a_newcomer_does_not_admit_it() -> None:
    pool = PoolOfStages("a", "b")
    pool.machines["b"].slow = True
    pool.begin()
    assert pool.usable == ["a"]
    pool.machines["a"].deaf = True
    pool.opens("b")
    assert pool.usable == ["a"], "who serves goes on serving while somebody joins"


def test_who_joins_later_serves_as_well() -> None:
    pool = PoolOfStages("a")
    pool.begin()
    before = pool.hosting.number
    pool.join("b")
    assert pool.usable == ["a", "b"]
    assert pool.hosting.number > before


def test_machines_that_are_named_are_the_only_ones() -> None:
    pool = PoolOfStages("a", "b", "c")
    pool.begin("a", "c")
    assert pool.usable == ["a", "c"]


def test_an_engine_that_dies_is_news_at_once_and_its_key_is_withdrawn() -> None:
    pool = PoolOfStages("a", "b")
    pool.begin()
    pool.machines["a"].slow = True
    pool.dies("a", "ended by SIGSEGV")
    assert pool.usable == ["b"]
    assert pool.gone == [("a", "its engine ended: ended by SIGSEGV")]
    assert pool.machines["b"].admitted == ("b-1", "front-key")
    pool.opens("a")
    assert pool.usable == ["a", "b"]
    assert pool.machines["b"].admitted == ("a-2", "b-1", "front-key")


def test_a_stream_that_ends_is_news_at_once_and_its_machine_comes_back_with_the_engine_it_had() -> None:
    pool = PoolOfStages("a", "b")
    pool.begin()
    pool.cut("a")
    assert pool.usable == ["b"]
    assert pool.gone[-1][0] == "a"
    pool.join("a")
    assert pool.usable == ["a", "b"]
    assert pool.machines["a"].engines == [1]


def test_a_machine_that_starts_anew_is_a_stage_again() -> None:
    pool = PoolOfStages("a", "b")
    pool.begin()
    pool.crash("a")
    pool.join("a", boot="c")
    assert pool.usable == ["a", "b"]
    assert pool.machines["a"].engines == [1, 1]


def test_a_suspect_gets_a_fresh_engine_in_a_new_generation() -> None:
    pool = PoolOfStages("a", "b")
    pool.begin()
    since = pool.hosting.stages["a"].since
    pool.say(SuspectStage(JOB, "a", since, "no answer within 0.5 s"))
    assert pool.gone == [("a", "suspected: no answer within 0.5 s")]
    assert pool.machines["a"].engines == [1, 3]
    assert pool.usable == ["a", "b"]


def test_a_suspicion_that_comes_late_does_not_touch_the_engine_after_it() -> None:
    pool = PoolOfStages("a", "b")
    pool.begin()
    since = pool.hosting.stages["a"].since
    pool.dies("a")
    pool.say(SuspectStage(JOB, "a", since, "no answer"))
    assert pool.machines["a"].engines == [1, 1]
    assert pool.usable == ["a", "b"]


def test_what_an_older_generation_says_changes_nothing() -> None:
    pool = PoolOfStages("a")
    pool.begin()
    pool.say(SuspectStage(JOB, "a", 0, "no answer"))
    address = pool.hosting.stages["a"].address
    pool.say(Heard("a", EngineUp(JOB, 1, STAGE, Address("tcp://a:9", "old"))))
    assert pool.hosting.stages["a"].address == address


def test_an_engine_that_never_comes_up_gives_its_machine_back() -> None:
    pool = PoolOfStages("a", "b")
    pool.machines["a"].slow = True
    pool.begin()
    for _ in range(5):
        pool.dies("a", "exit status 1")
    assert pool.machines["a"].role is None
    assert pool.coordinator.pool["a"].job == ""
    assert (JOB, "a cannot serve: its engine ended 5 times in a row: exit status 1") in pool.said
    assert pool.usable == ["b"]


def test_machines_that_the_front_has_no_use_for_are_free_and_come_back_when_it_wants_them() -> None:
    pool = PoolOfStages("a", "b", "c")
    pool.begin()
    pool.say(ReleaseMachines(JOB, frozenset({"b", "c"})))
    assert pool.usable == ["a"]
    assert {n: v.job for n, v in pool.coordinator.pool.items()} == {"a": JOB, "b": "", "c": ""}
    pool.say(ReleaseMachines(JOB, frozenset({"c"})))
    assert pool.usable == ["a", "b"]


def test_a_serving_that_ends_gives_every_machine_back() -> None:
    pool = PoolOfStages("a", "b")
    pool.begin()
    effects = pool.say(EndServing(JOB, "its front end stopped"))
    assert [e.node for e in effects if isinstance(e, Send) and isinstance(e.message, Leave)] == ["a", "b"]
    assert not pool.coordinator.servings.live
    assert {view.job for view in pool.coordinator.pool.values()} == {""}


def test_a_front_that_asks_for_nothing_is_gone_after_fifteen_seconds() -> None:
    pool = PoolOfStages("a")
    pool.begin()
    pool.wait(30.0)
    assert pool.usable == ["a"]
    pool.wait(16.0, asking=False)
    assert not pool.coordinator.servings.live
    assert pool.machines["a"].role is None
    assert pool.coordinator.servings.ended[JOB] == "its front end asked for nothing for 15 s"


def test_a_restarted_coordinator_keeps_the_stages_for_the_front_that_comes_back() -> None:
    pool = PoolOfStages("a", "b", "c")
    pool.begin("a", "b")
    keys = pool.machines["a"].admitted
    pool.restart()
    assert {n: v.job for n, v in pool.coordinator.pool.items()} == {"a": JOB, "b": JOB, "c": ""}
    pool.wait(1.0, asking=False)
    pool.begin("a", "b")
    assert pool.usable == ["a", "b"]
    assert pool.machines["a"].admitted == keys, "nobody started a new engine"
    assert pool.machines["a"].engines == [1]


def test_a_restarted_coordinator_ends_a_serving_whose_front_does_not_come_back() -> None:
    pool = PoolOfStages("a")
    pool.begin()
    pool.restart()
    pool.wait(16.0, asking=False)
    assert pool.machines["a"].role is None
    assert pool.coordinator.pool["a"].job == ""


def test_who_did_not_hear_that_a_serving_is_over_is_told_again() -> None:
    pool = PoolOfStages("a")
    pool.begin()
    pool.cut("a")
    pool.say(EndServing(JOB, "its front end stopped"))
    pool.join("a")
    assert pool.machines["a"].role is None


def test_many_stages_hear_of_each_other_once_a_tick() -> None:
    names = [f"m{number:02}" for number in range(24)]
    pool = PoolOfStages(*names)
    pool.begin()
    assert pool.usable == []
    pool.wait(0.5)
    assert pool.usable == names
    lists = [message for message in pool.machines["m00"].told if isinstance(message, Peers)]
    assert len(lists) <= 3


def test_two_servings_share_a_pool_and_never_a_key() -> None:
    pool = PoolOfStages("a", "b")
    pool.begin("a")
    other = Address("tcp://other:1", "other-key")
    spec = pool.hosting.spec
    pool.say(BeginServing("chat-2", other, replace(spec, machines=("b",)), 2))
    assert pool.machines["a"].admitted == ("a-1", "front-key")
    assert pool.machines["b"].admitted == ("b-1", "other-key")


def test_a_serving_of_a_node_that_was_assigned_is_told_its_threads() -> None:
    pool = PoolOfStages("a")
    pool.begin()
    assigned = [m for m in pool.machines["a"].told if isinstance(m, AssignStage)]
    assert [(m.generation, m.threads) for m in assigned] == [(1, 0)]


def higher(pool: PoolOfStages, priority: int = 5, least: int = 1) -> None:
    """Another front wants machines, and matters more."""
    spec = ServingSpec("other", (), 0, Schedule(priority=priority, workers_min=least, workers_max=least))
    pool.say(BeginServing("other-1", Address("tcp://other:1", "other-key"), spec, 2))


def test_a_machine_that_the_scheduler_gives_away_is_left_within_ten_seconds() -> None:
    pool = PoolOfStages("a", "b", scheduler="priority")
    pool.begin()
    pool.wait(31.0)
    higher(pool)
    pool.wait(1.0)
    (leaving,) = [stage for stage in pool.hosting.stages.values() if stage.leaving]
    assert leaving.leaving == "it works for other-1 now"
    assert leaving.node in pool.usable, "it may be used until it is left"
    pool.wait(11.0)
    assert leaving.node not in pool.hosting.stages
    assert pool.gone[-1] == (leaving.node, "it works for other-1 now")


def test_a_front_that_has_moved_away_releases_a_leaving_machine_at_once() -> None:
    pool = PoolOfStages("a", "b", scheduler="priority")
    pool.begin()
    pool.wait(31.0)
    higher(pool)
    (leaving,) = [stage.node for stage in pool.hosting.stages.values() if stage.leaving]
    pool.say(ReleaseMachines(JOB, frozenset({leaving})))
    assert leaving not in pool.hosting.stages


def test_a_serving_that_loses_every_machine_waits_for_others() -> None:
    pool = PoolOfStages("a", "b", scheduler="priority")
    pool.begin()
    pool.wait(31.0)
    higher(pool, least=2)
    pool.wait(12.0)
    assert pool.usable == []
    assert JOB in pool.coordinator.servings.live
    pool.join("c")
    assert pool.usable == ["c"]


def test_a_revoked_machine_serves_nobody_and_its_key_is_withdrawn() -> None:
    pool = PoolOfStages("a", "b")
    pool.begin()
    pool.machines["a"].connected = False
    pool.say(Expel("a", "sold"))
    assert pool.usable == ["b"]
    assert pool.machines["b"].admitted == ("b-1", "front-key")
    assert "a" not in pool.hosting.stages
