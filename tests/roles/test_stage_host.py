"""The life of a stage's engine: who is told of it, who may connect, and when a fresh one takes its place."""

from __future__ import annotations

from medley.protocol.effects import Effect, Report, Run, StopEngine
from medley.protocol.engine import EngineExited, Opened, OpenStage, PeersKnown, SetPeers
from medley.protocol.events import EngineSaid, NodeEvent, Told
from medley.protocol.messages import (
    Address,
    AssignStage,
    EngineDown,
    EngineUp,
    Leave,
    Peers,
    PeersSet,
    ShardStatus,
    ToNode,
    Welcome,
)
from medley.protocol.stages.words import STAGE
from medley.roles.stage_host import StageHost

HERE, FRONT = Address("tcp://a:1", "key"), Address("tcp://front:1", "front-key")
UP = EngineUp("chat", 1, STAGE, HERE)


def stage() -> StageHost:
    role = StageHost("a", AssignStage("chat", 1, 2))
    assert role.start() == [Run(OpenStage("chat", 1, "a", 2))]
    return role


def does(role: StageHost, event: NodeEvent) -> list[Effect]:
    return [effect for effect in role.handle(event, 0) if isinstance(effect, Report | Run | StopEngine)]


def told(role: StageHost, message: ToNode) -> list[Effect]:
    return does(role, Told(message))


def opened(role: StageHost) -> StageHost:
    assert does(role, EngineSaid(Opened(HERE))) == [Report(UP)]
    return role


def test_the_coordinator_hears_when_it_listens_and_again_whenever_it_asks() -> None:
    role = stage()
    assert told(role, Welcome(1, 1000)) == []
    assert role.status() == ShardStatus("chat", 1, STAGE, -1, (), (), False)
    opened(role)
    assert role.status().ready
    assert told(role, Welcome(2, 1000)) == told(role, AssignStage("chat", 1, 2)) == [Report(UP)]


def test_who_may_connect_is_passed_on_and_acknowledged_and_older_lists_change_nothing() -> None:
    role = opened(stage())
    peers = Peers("chat", 1, STAGE, 7, ("key", "front-key"), FRONT)
    assert told(role, peers) == [Run(SetPeers(7, ("key", "front-key"), FRONT))]
    assert does(role, EngineSaid(PeersKnown(7))) == [Report(PeersSet("chat", 1, STAGE, 7))]
    assert told(role, Peers("chat", 1, STAGE, 6, (), FRONT)) == []
    assert told(role, Peers("chat", 2, STAGE, 8, (), FRONT)) == []


def test_an_engine_that_dies_is_started_again_and_knows_nobody() -> None:
    role = opened(stage())
    told(role, Peers("chat", 1, STAGE, 7, (), FRONT))
    assert does(role, EngineSaid(EngineExited("killed", True))) == [
        Report(EngineDown("chat", 1, STAGE, "killed", True)),
        Run(OpenStage("chat", 1, "a", 2)),
    ]
    assert not role.status().ready
    again = Peers("chat", 1, STAGE, 7, (), FRONT)
    assert told(role, again) == [Run(SetPeers(7, (), FRONT))], "a fresh engine may hear the same list"


def test_a_new_generation_is_a_fresh_engine() -> None:
    role = opened(stage())
    (stop,) = told(role, AssignStage("chat", 3, 2))
    assert isinstance(stop, StopEngine)
    assert does(role, EngineSaid(EngineExited("killed", False))) == [
        Report(EngineDown("chat", 3, STAGE, "killed", False)),
        Run(OpenStage("chat", 3, "a", 2)),
    ]
    assert told(role, AssignStage("chat", 2, 2)) == [], "an older word that comes late"


def test_who_leaves_ends_its_engine_and_an_old_word_to_leave_is_not_heard() -> None:
    role = opened(stage())
    assert told(role, Leave("chat", 9, STAGE, "of another time")) == []
    assert told(role, Leave("chat", 1, STAGE, "it is over")) == [StopEngine("it is over")]
