"""The coordinator between jobs: one has the pool, the others wait, and neither disturbs the other."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.scenarios.notation import read, split
from tests.scenarios.stages import JOB, CoordinatorStage, S, make_spec

from medley.protocol import effects as fx
from medley.protocol import engine as e
from medley.protocol import messages as m
from medley.protocol.codec import text
from medley.protocol.events import Cancel, EngineSaid, Heard, Resume, Stop, Submit, Tick
from medley.protocol.spec import JobSpec
from medley.roles.context import MEASUREMENT

SPEC = text(make_spec({}))


def commands(effects: list[fx.Effect]) -> list[e.Command]:
    return [effect.command for effect in effects if isinstance(effect, fx.Run)]


def said(stage: CoordinatorStage, node: str, line: str) -> list[fx.Effect]:
    return stage.handle(Heard(node, read(line.split(), JOB, 1)))


def states(stage: CoordinatorStage) -> dict[str, str]:
    return {job: run.state.state for job, run in stage.coordinator.runs.items()}


def test_a_second_job_waits_and_leaves_the_vault_alone() -> None:
    stage = CoordinatorStage({})
    assert not commands(stage.handle(Submit("k", SPEC, 2)))
    assert states(stage) == {JOB: "running", "k": "queued"}
    stage.handle(EngineSaid(e.PeersKnown(stage.coordinator.runs[JOB].ctx.roster.keys_number)))
    assert not stage.coordinator.runs["k"].ctx.roster.addresses

    effects = stage.handle(Heard("w1", m.LeaseFailed(JOB, 1, (), "its task is wrong", True)))
    assert states(stage) == {JOB: "running", "k": "preparing"}, "what the first cannot use goes to the next"
    assert any(isinstance(c, e.PrepareJob) and c.job == "k" for c in commands(effects))
    stage.handle(Heard("w2", m.LeaseFailed(JOB, 1, (), "its task is wrong", True)))
    stage.handle(Tick(0))
    assert states(stage) == {JOB: "failed", "k": "preparing"}
    assert stage.coordinator.runs["k"].ctx.allotted == {"w1", "w2"}


def test_a_job_that_failed_while_it_was_prepared_is_prepared_again_when_resumed() -> None:
    stage = CoordinatorStage({})
    stage.handle(Submit("k", SPEC, 2))
    stage.handle(Cancel(JOB, 3))
    stage.handle(Tick(0))
    stage.handle(EngineSaid(e.Failed("prepare", "k", "no such column", False, True)))
    assert states(stage)["k"] == "failed"
    effects = [*stage.handle(Resume("k", 4)), *stage.handle(Tick(0))]
    assert states(stage)["k"] == "preparing"
    assert any(isinstance(c, e.PrepareJob) for c in commands(effects))


def test_a_preparer_that_was_killed_is_started_again_but_not_for_ever() -> None:
    stage = CoordinatorStage({})
    stage.handle(Cancel(JOB, 2))
    stage.handle(Submit("k", SPEC, 2))
    for _ in range(4):
        effects = stage.handle(EngineSaid(e.Failed("prepare", "k", "killed", True, False)))
        assert any(isinstance(c, e.PrepareJob) for c in commands(effects))
    stage.handle(EngineSaid(e.Failed("prepare", "k", "killed", True, False)))
    assert states(stage)["k"] == "failed"


def test_stopping_saves_what_was_committed_and_commits_nothing_more() -> None:
    stage = CoordinatorStage({"mode": "async", "workers": "1"})
    said(stage, "w1", "UpdateReady update=a leases=[1] base=0")
    said(stage, "s1", "Staged shard=0 update=a")
    said(stage, "w1", "UpdateReady update=b leases=[2] base=0")
    effects = stage.handle(Stop())
    assert any(isinstance(f, fx.Send) and isinstance(f.message, m.WritePart) for f in effects)
    said(stage, "s1", "Staged shard=0 update=b")
    assert stage.coordinator.unsaved() == [JOB]
    assert stage.coordinator.runs[JOB].state.version == 1
    said(stage, "s1", "PartWritten shard=0 version=1")
    stage.handle(EngineSaid(e.Sealed(JOB, 1, 1, "d", 1)))
    assert stage.coordinator.unsaved() == []


def test_a_revoked_node_is_refused() -> None:
    stage = CoordinatorStage({})
    stage.coordinator.revoked["w1"] = "its disk was stolen"
    effects = said(stage, "w1", "BaseWanted lease=1")
    assert [type(f) for f in effects[:2]] == [fx.Send, fx.Close]


def test_a_stranger_and_a_silent_node_are_not_believed() -> None:
    stage = CoordinatorStage({})
    assert said(stage, "nobody", "BaseWanted lease=1") == []
    stage.now += 60 * S
    effects = stage.handle(Tick(stage.now))
    assert {f.node for f in effects if isinstance(f, fx.Close)} == {"w1", "w2", "s1"}
    assert said(stage, "w1", "BaseWanted lease=1") == []


def test_a_finished_job_calls_its_machines_back() -> None:
    stage = CoordinatorStage({})
    stage.handle(Cancel(JOB, 2))
    effects = stage.event(["hello", "w1", "WorkerStatus", "phase=idle"])
    assert any(isinstance(f, fx.Send) and isinstance(f.message, m.Leave) for f in effects)


def test_a_heartbeat_that_says_nothing_new_has_no_consequences_and_a_new_one_has() -> None:
    stage = CoordinatorStage({"mode": "async", "workers": "1"})
    run = stage.coordinator.runs[JOB]
    held = tuple(sorted(run.ctx.leases_of("w1")))
    alike = m.Heartbeat("w1", (m.WorkerStatus(JOB, 1, held, (), "computing"),), ())
    assert stage.handle(Heard("w1", alike)) == []
    assert not run.heard("w1", alike, stage.now)
    foreign = m.Heartbeat("w1", (m.WorkerStatus(JOB, 1, (*held, 99), (), "computing"),), ())
    assert [f.message.leases for f in stage.handle(Heard("w1", foreign)) if isinstance(f, fx.Send)] == [(99,)]


def test_a_wish_that_no_news_told_of_is_found_within_seconds() -> None:
    """Ticks look only at what is due, but who was overlooked does not wait for ever."""
    stage = CoordinatorStage({"mode": "async", "workers": "1"})
    stage.event(["tick", "6"])
    stage.coordinator.runs[JOB].ctx.roster.workers["w1"].wanting = 1
    assert not bases(stage.event(["tick", "1"]))
    assert bases(stage.event(["tick", "5"]))


def bases(effects: list[fx.Effect]) -> list[m.Base]:
    return [f.message for f in effects if isinstance(f, fx.Send) and isinstance(f.message, m.Base)]


def test_a_measurement_that_is_not_a_number_is_no_measurement() -> None:
    stage = CoordinatorStage({"mode": "async", "workers": "1"})
    ctx = stage.coordinator.runs[JOB].ctx
    ctx.measuring, ctx.measuring_node = 0, "w1"
    effects = stage.handle(Heard("w1", m.Evaluated(JOB, 1, 0, float("nan"), 10, 0.5)))
    assert not [f for f in effects if isinstance(f, fx.Persist)]
    assert (ctx.measuring, ctx.measure_failures, ctx.state.measured) == (-1, 1, -1)


def test_a_machine_that_cannot_train_a_job_leaves_it_to_the_others() -> None:
    stage = CoordinatorStage({"mode": "async", "workers": "2"})
    effects = stage.handle(Heard("w1", m.LeaseFailed(JOB, 1, (), "its transformers are too old", True)))
    assert states(stage)[JOB] == "running"
    assert any(isinstance(f, fx.Send) and f.node == "w1" and isinstance(f.message, m.Leave) for f in effects)
    assert fx.Explain("w1", f"takes no part in {JOB}: its transformers are too old") in effects
    assert {h.node for h in stage.coordinator.runs[JOB].state.ledger.leases.values()} == {"w2"}

    effects = stage.event(["hello", "w1"])
    assert not any(isinstance(f, fx.Send) and isinstance(f.message, m.AssignWorker) for f in effects)
    effects = stage.event(["hello", "w1", "anew"])  # somebody may have mended it
    assert any(isinstance(f, fx.Send) and isinstance(f.message, m.AssignWorker) for f in effects)

    stage.handle(Heard("w1", m.LeaseFailed(JOB, 1, (), "still too old", True)))
    stage.handle(Heard("w2", m.LeaseFailed(JOB, 1, (), "no memory", True)))
    assert states(stage)[JOB] == "failed"
    assert stage.coordinator.runs[JOB].state.reason == "w1: still too old; w2: no memory"


def test_nobody_speaks_for_another_node() -> None:
    stage = CoordinatorStage({})
    before = {name: view.boot for name, view in stage.coordinator.pool.items()}
    effects = stage.handle(Heard("w1", m.Hello("w2", "z", m.Capability(1, 1, "", True, True), (), ())))
    assert any(isinstance(f, fx.Reject) and f.peer == "w1" for f in effects)
    assert {name: view.boot for name, view in stage.coordinator.pool.items()} == before


def leases_of(stage: CoordinatorStage, node: str) -> list[int]:
    return [n for n, held in stage.coordinator.runs[JOB].state.ledger.leases.items() if held.node == node]


def test_no_lease_takes_too_long_before_anything_was_measured() -> None:
    stage = CoordinatorStage({"mode": "async", "workers": "1"})
    said(stage, "w1", "BaseWanted lease=1")
    for _ in range(100):
        stage.event(["tick", "60"])
    assert leases_of(stage, "w1") == [1, 2]


def test_a_worker_that_was_only_slow_gets_longer_the_next_time() -> None:
    stage = CoordinatorStage({"mode": "async", "workers": "1"})
    ctx = stage.coordinator.runs[JOB].ctx
    ctx.lease_times_ns.extend([S] * 5)
    said(stage, "w1", "BaseWanted lease=1")
    stage.event(["tick", "40"])
    assert leases_of(stage, "w1") == [] and ctx.roster.workers["w1"].hung
    said(stage, "w1", "BaseWanted lease=1")
    assert ctx.lease_times_ns[-1] == 40 * S
    first = leases_of(stage, "w1")[0]
    said(stage, "w1", f"BaseWanted lease={first}")
    stage.event(["tick", "40"])
    assert first in leases_of(stage, "w1"), "twice the patience"


@pytest.mark.parametrize(
    "lie",
    [
        "leases=[]",
        "leases=[1 1]",
        "leases=[1] base=7",
        "leases=[1] base=0 oldest_base=5",
        "leases=[1] base=-1 oldest_base=-1",
        "leases=[1] weight=nan",
        "leases=[1] weight=-3",
        "leases=[1] tokens=9000000000000000000",
    ],
)
def test_an_update_that_makes_no_sense_is_refused_and_changes_nothing(lie: str) -> None:
    stage = CoordinatorStage({"mode": "async", "workers": "1"})
    words = split(f"UpdateReady update=a {lie}")
    effects = stage.handle(Heard("w1", read(words, JOB, 1)))
    assert [type(f) for f in effects] == [fx.Reject]
    assert not stage.coordinator.runs[JOB].ctx.roster.updates


def test_a_node_speaks_only_of_the_shards_it_holds() -> None:
    stage = CoordinatorStage({"mode": "async", "workers": "1"})
    said(stage, "w1", "UpdateReady update=a leases=[1] base=0")
    for line in (
        "Staged shard=0 update=a",
        "LoadFailed shard=0 version=0",
        "PartFailed shard=0 version=0",
        "EngineDown shard=0",
        "Staged shard=5 update=a",
    ):
        assert [type(f) for f in said(stage, "w1", line)] == [fx.Reject]
    assert states(stage) == {JOB: "running"}
    assert stage.coordinator.runs[JOB].state.version == 0


def test_a_heartbeat_about_a_job_that_waits_changes_nothing() -> None:
    stage = CoordinatorStage({})
    stage.handle(Submit("k", SPEC, 2))
    worker, shard = m.WorkerStatus("k", 0, (1,), ("a",), "idle"), m.ShardStatus("k", 0, 0, 0, (), (), True)
    stage.handle(Heard("w1", m.Heartbeat("w1", (worker,), (shard,))))
    stage.handle(Heard("w1", m.UpdateReady("k", 0, "a", (1,), 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, True)))
    assert states(stage)["k"] == "queued"


def prepares(effects: list[fx.Effect]) -> int:
    return sum(isinstance(c, e.PrepareJob) for c in commands(effects))


def test_a_job_resumed_while_its_preparer_works_waits_for_that_one() -> None:
    stage = CoordinatorStage({})
    stage.handle(Cancel(JOB, 2))
    assert prepares(stage.handle(Submit("k", SPEC, 2))) == 1
    stage.handle(Cancel("k", 3))
    assert prepares([*stage.handle(Resume("k", 4)), *stage.handle(Tick(0))]) == 0
    assert states(stage)["k"] == "preparing"
    stage.handle(EngineSaid(e.JobPrepared("k", text(stage.plan))))
    assert states(stage)["k"] == "running"


def test_what_a_preparer_or_an_exporter_says_too_late_changes_nothing() -> None:
    stage = CoordinatorStage({})
    stage.handle(Cancel(JOB, 2))
    stage.handle(EngineSaid(e.Exported(JOB, 0, "out")))
    stage.handle(EngineSaid(e.Failed("export", JOB, "killed", True, True)))
    stage.handle(EngineSaid(e.Failed("prepare", JOB, "killed", True, True)))
    assert states(stage) == {JOB: "cancelled"}


def test_a_resumed_job_does_not_take_the_pool_from_the_running_one() -> None:
    stage = CoordinatorStage({})
    stage.handle(Cancel(JOB, 2))
    stage.handle(Submit("k", SPEC, 2))
    stage.handle(EngineSaid(e.JobPrepared("k", text(stage.plan))))
    stage.handle(Resume(JOB, 3))
    assert states(stage) == {JOB: "queued", "k": "running"}
    stage._boot()
    assert stage.coordinator.active == "k"
    stage.handle(Cancel("k", 4))
    stage.handle(Tick(0))
    assert (stage.coordinator.active, states(stage)[JOB]) == (JOB, "running")


def test_a_measurement_is_asked_of_nobody_who_computes() -> None:
    stage = CoordinatorStage({"mode": "async", "workers": "2"})
    run = stage.coordinator.runs[JOB]
    said(stage, "w1", f"BaseWanted lease={leases_of(stage, 'w1')[0]}")
    said(stage, "w1", "BaseHeld version=0")
    run.ctx.plan = replace(run.ctx.prepared, heldout=4, spec=measuring(run.ctx.prepared.spec))
    assert not evaluates(stage.handle(Tick(0)))
    assert evaluates(said(stage, "w2", f"BaseWanted lease={leases_of(stage, 'w2')[0]}")) == ["w2"]


def measuring(spec: JobSpec) -> JobSpec:
    return replace(spec, train=replace(spec.train, eval_every_commits=1))


def evaluates(effects: list[fx.Effect]) -> list[str]:
    return [f.node for f in effects if isinstance(f, fx.Send) and isinstance(f.message, m.Evaluate)]


def test_a_measurement_keeps_nobody_from_a_newer_base() -> None:
    stage = CoordinatorStage({"mode": "async", "workers": "1"})
    ctx = stage.coordinator.runs[JOB].ctx
    ctx.pin(0, MEASUREMENT)
    said(stage, "w1", "UpdateReady update=a leases=[1] base=0")
    said(stage, "s1", "Staged shard=0 update=a")
    assert (ctx.state.version, set(ctx.pins)) == (1, {0})
    effects = said(stage, "w1", "BaseWanted lease=2")
    assert any(isinstance(f, fx.Send) and isinstance(f.message, m.Base) and f.message.version == 1 for f in effects)


def test_two_updates_of_one_node_are_not_a_quorum_of_two() -> None:
    stage = CoordinatorStage({"mode": "local-sgd", "workers": "2", "quorum": "1", "in_flight": "2", "samples": "64"})
    for update, lease in zip(("a", "b"), leases_of(stage, "w1"), strict=True):
        said(stage, "w1", f"UpdateReady update={update} leases=[{lease}] base=0")
        said(stage, "s1", f"Staged shard=0 update={update}")
    assert stage.coordinator.runs[JOB].state.version == 0, "w2 computes"
    said(stage, "w2", f"UpdateReady update=c leases=[{leases_of(stage, 'w2')[0]}] base=0")
    said(stage, "s1", "Staged shard=0 update=c")
    assert stage.coordinator.runs[JOB].state.version == 1


def test_a_carry_weighs_as_old_as_the_bound_allows() -> None:
    stage = CoordinatorStage({"mode": "async", "workers": "2", "bound": "1", "samples": "64"})
    one, other = leases_of(stage, "w1"), leases_of(stage, "w2")
    said(stage, "w2", f"UpdateReady update=old leases=[{other[0]}] base=0")
    for update, lease in zip(("a", "b"), one, strict=True):
        said(stage, "w1", f"UpdateReady update={update} leases=[{lease}] base=0")
        said(stage, "s1", f"Staged shard=0 update={update}")
    said(stage, "s1", "Staged shard=0 update=old")  # staleness 2: carried
    late = m.UpdateReady(JOB, 1, "new", (other[1], other[0]), 2, 0, 2, 1, 1, 2, 2, 1, 1, 0, True)
    stage.handle(Heard("w2", late))
    said(stage, "s1", "Staged shard=0 update=new")
    assert [x.staleness for c in stage.coordinator.runs[JOB].state.tail for x in c.members] == [0, 1, 1]
