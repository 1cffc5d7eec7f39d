"""Every scheduler keeps its promises, whatever the pool looks like; and each does what its name says."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from medley.policies.scheduling.line import next_hold_ns
from medley.policies.scheduling.names import NAMES, check_quotas, scheduler
from medley.policies.scheduling.view import (
    AGEING_NS,
    HOLD_MAX_NS,
    HOLD_NS,
    Allotment,
    JobFacts,
    NodeFacts,
    PoolView,
    fits,
    hosts_wanted,
    least,
    most,
)
from medley.protocol.errors import UserError
from medley.protocol.ids import NS_PER_S

GIB = 1 << 30
NOW = 1000 * NS_PER_S


@st.composite
def pools(draw: st.DrawFn) -> PoolView:
    """A few jobs and machines; machines may have jobs already, some of which are over."""
    jobs = [draw(a_job(f"j{i}")) for i in range(draw(st.integers(0, 6)))]
    names = ["", *(job.job for job in jobs if job.begun), "over"]
    nodes = [draw(a_node(f"n{i}", names)) for i in range(draw(st.integers(0, 10)))]
    quotas = draw(st.dictionaries(st.sampled_from(["a", "b"]), st.integers(1, 5), max_size=2))
    return PoolView(jobs, nodes, quotas, draw(st.integers(0, 2)))


@st.composite
def a_job(draw: st.DrawFn, name: str) -> JobFacts:
    return JobFacts(
        name,
        draw(st.integers(0, 50)),
        NOW - draw(st.integers(0, 900)) * NS_PER_S,
        draw(st.booleans()),
        draw(st.booleans()) and draw(st.booleans()),
        priority=draw(st.integers(-2, 2)),
        weight=draw(st.sampled_from([0.5, 1.0, 3.0])),
        queue=draw(st.sampled_from(["", "a", "b"])),
        workers_min=draw(st.integers(1, 4)),
        workers_max=draw(st.sampled_from([0, 0, 4, 6])),
        memory_bytes=draw(st.sampled_from([0, 4, 8])) * GIB,
        replicas=draw(st.sampled_from([1, 2])),
        preemptible=draw(st.booleans()),
        deadline_ns=draw(st.sampled_from([0, NOW + 60 * NS_PER_S])),
        local=frozenset(draw(st.sets(st.sampled_from(["n0", "n1", "n2"]), max_size=2))),
        unfit=frozenset(draw(st.sets(st.sampled_from(["n3", "n4"]), max_size=1))),
    )


@st.composite
def a_node(draw: st.DrawFn, name: str, jobs: list[str]) -> NodeFacts:
    return NodeFacts(
        name,
        draw(st.sampled_from([2, 4, 8, 16])) * GIB,
        draw(st.integers(1, 64)),
        draw(st.booleans()) or draw(st.booleans()),
        draw(st.sampled_from(jobs)),
        work_per_s=draw(st.sampled_from([0.0, 1e6, 5e6, 1e8])),
        holds=draw(st.booleans()),
        spot=draw(st.booleans()),
        price_per_h=draw(st.sampled_from([0.0, 1.0])),
    )


def decide(name: str, view: PoolView, now_ns: int = NOW) -> Allotment:
    return scheduler(name)(view, now_ns).plan


def present(view: PoolView) -> dict[str, set[str]]:
    """Fitting machines that each job has before the decision."""
    jobs = {job.job: job for job in view.jobs}
    found: dict[str, set[str]] = {}
    for node in view.nodes:
        if node.job in jobs and fits(jobs[node.job], node):
            found.setdefault(node.job, set()).add(node.node)
    return found


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=60, deadline=None)
@given(view=pools())
@example(
    view=PoolView(
        [JobFacts("j0", 0, NOW, begun=True, queue="b", workers_min=2, preemptible=False)],
        [NodeFacts(f"n{i}", 2 * GIB, shard=False, job="j0") for i in range(2)],
        {"b": 2},
    )
)
@example(
    view=PoolView(
        [JobFacts("waits", 0, NOW, memory_bytes=4 * GIB), JobFacts("runs", 0, NOW - HOLD_NS, True, queue="b")],
        [
            NodeFacts("large", 4 * GIB, job="runs", work_per_s=1e6),
            NodeFacts("small", 2 * GIB),
            NodeFacts("quick", 2 * GIB, work_per_s=5e6),
        ],
        {"b": 2},
    )
)
def test_what_every_scheduler_promises(name: str, view: PoolView) -> None:
    found = decide(name, view)
    jobs = {job.job: job for job in view.jobs}
    nodes = {node.node: node for node in view.nodes}
    given_out = Counter(node for names in found.nodes.values() for node in names)
    assert not [node for node, times in given_out.items() if times > 1], "a machine has one job"
    used: Counter[str] = Counter()
    before = present(view)
    for job, names in found.nodes.items():
        facts = jobs[job]
        assert all(fits(facts, nodes[n]) for n in names)
        assert len(names) <= most(facts)
        used[facts.queue] += len(names)
        kept = before.get(job, set())
        if names and not kept:
            assert len(names) >= least(view, facts), "all that it needs to begin, or none"
            assert sum(nodes[n].shard for n in names) >= hosts_wanted(view, facts)
        if kept and len(kept) >= least(view, facts) and names:
            assert len(names) >= least(view, facts), "nothing is left with less than it needs"
    assert all(used[queue] <= limit for queue, limit in view.quotas.items())
    _nobody_waits_beside_idle_machines(view, found, used)
    assert found.jobs_why.keys() == jobs.keys() and all(found.jobs_why.values())
    changed = {n for n in nodes if _job_of(found, n) != nodes[n].job}
    idle = nodes.keys() - given_out.keys()
    assert changed | idle >= found.nodes_why.keys() >= (changed - idle) | idle
    assert decide(name, replace(view, jobs=list(view.jobs)[::-1], nodes=list(view.nodes)[::-1])) == found


def _job_of(found: Allotment, node: str) -> str:
    return next((job for job, names in found.nodes.items() if node in names), "")


def _nobody_waits_beside_idle_machines(view: PoolView, found: Allotment, used: Counter[str]) -> None:
    given_out = {node for names in found.nodes.values() for node in names}
    idle = [node for node in view.nodes if node.node not in given_out]
    for job in view.jobs:
        able = [node for node in idle if fits(job, node)]
        quota = view.quotas.get(job.queue, 1 << 30) - used[job.queue]
        names = found.nodes.get(job.job, ())
        if names:
            kept = max(0, hosts_wanted(view, job) - sum(node.shard for node in view.nodes if node.node in names))
            able = able if not kept else [node for node in able if node.shard]
            assert not able or len(names) == most(job) or quota <= 0, f"{job.job} could use {able[0].node}"
            continue
        wanted = least(view, job)
        hosts = sum(node.shard for node in able) >= hosts_wanted(view, job)
        assert len(able) < wanted or quota < wanted or most(job) < wanted or not hosts, f"{job.job} waits"


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=40, deadline=None)
@given(view=pools())
def test_a_decision_that_was_carried_out_is_not_changed_again(name: str, view: PoolView) -> None:
    """Nothing flip-flops while nothing changes, apart from limits on how much moves at once."""
    for _ in range(4):
        view = carried_out(view, decide(name, view), NOW)
    later = NOW + NS_PER_S
    assert decide(name, view, later).nodes == decide(name, view, NOW).nodes


def carried_out(view: PoolView, found: Allotment, now_ns: int) -> PoolView:
    of = {node: job for job, names in found.nodes.items() for node in names}
    had = {node.job for node in view.nodes}
    jobs = [
        replace(
            job,
            begun=bool(found.nodes.get(job.job)) or (job.begun and job.job in found.nodes),
            since_ns=job.since_ns if bool(found.nodes.get(job.job)) == (job.job in had) else now_ns,
        )
        for job in view.jobs
    ]
    return replace(view, jobs=jobs, nodes=[replace(node, job=of.get(node.node, "")) for node in view.nodes])


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=40, deadline=None)
@given(view=pools())
@example(
    view=PoolView(
        [JobFacts("j0", 0, NOW, begun=True), JobFacts("j1", 0, NOW, begun=True, queue="a", preemptible=False)],
        [NodeFacts("n0", 2 * GIB, shard=False, job="j1")],
        {"a": 1},
    )
)
def test_what_may_not_be_taken_stays(name: str, view: PoolView) -> None:
    found = decide(name, view)
    jobs = {job.job: job for job in view.jobs}
    before = present(view)
    used: Counter[str] = Counter()
    for job, names in before.items():
        used[jobs[job].queue] += len(names)
    for job, names in before.items():
        facts = jobs[job]
        held = facts.ending or not facts.preemptible or NOW - facts.since_ns < HOLD_NS
        starving = any(NOW - other.since_ns > 600 * NS_PER_S for other in view.jobs if other.job not in before)
        # one that could hold no parameters must have room left for a machine that can, or it would never train
        lacking = max(0, hosts_wanted(view, facts) - sum(n.shard for n in view.nodes if n.node in names))
        quota = view.quotas.get(facts.queue, 1 << 30)
        bound = used[facts.queue] + lacking > quota or len(names) + lacking > most(facts)
        if bound or (starving and facts.preemptible and not facts.ending):
            continue
        if held or name == "fifo":
            assert names <= set(found.nodes[job]), f"{job} keeps what it has"


# -- what each is for -------------------------------------------------------------------------------------------------


def machines(count: int, **facts: object) -> list[NodeFacts]:
    return [NodeFacts(f"n{i}", 16 * GIB, 4, **facts) for i in range(count)]  # type: ignore[arg-type]


def test_fifo_gives_the_whole_pool_to_the_one_that_waits_longest() -> None:
    view = PoolView([JobFacts("late", 2), JobFacts("early", 1, priority=-5)], machines(3))
    found = decide("fifo", view)
    assert found.nodes == {"early": ("n0", "n1", "n2")}
    assert found.jobs_why["early"] == "it has the pool now: it waited longest"
    assert found.jobs_why["late"] == "it waits: every machine works for another job"


def test_fifo_gives_what_the_first_cannot_use_to_the_next() -> None:
    view = PoolView([JobFacts("a", 1, workers_max=2), JobFacts("b", 2, workers_min=3), JobFacts("c", 3)], machines(4))
    assert decide("fifo", view).nodes == {"a": ("n0", "n1"), "c": ("n2", "n3")}


def test_the_first_in_the_line_is_prepared_while_no_machine_is_there() -> None:
    for name in NAMES:
        assert decide(name, PoolView([JobFacts("a", 1), JobFacts("b", 2)], [])).nodes == {"a": ()}


@pytest.mark.parametrize("name", NAMES[1:])
def test_shares_go_by_weight(name: str) -> None:
    view = PoolView([JobFacts("a", 1, weight=3.0), JobFacts("b", 2, weight=1.0)], machines(8))
    found = decide(name, view)
    assert {job: len(names) for job, names in found.nodes.items()} == {"a": 6, "b": 2}


@pytest.mark.parametrize("name", NAMES[1:])
def test_a_newcomer_gets_its_share_of_what_another_has(name: str) -> None:
    had = JobFacts("a", 1, NOW - 2 * HOLD_NS, True)
    view = PoolView([had, JobFacts("b", 2, NOW)], machines(4, job="a"))
    found = decide(name, view)
    assert {job: len(names) for job, names in found.nodes.items()} == {"a": 2, "b": 2}
    fresh = replace(had, since_ns=NOW - HOLD_NS // 2)
    assert len(decide(name, replace(view, jobs=[fresh, view.jobs[1]])).nodes["a"]) == 4, "not so soon"
    stays = replace(had, preemptible=False)
    assert len(decide(name, replace(view, jobs=[stays, view.jobs[1]])).nodes["a"]) == 4, "not from this one"


def test_a_higher_priority_takes_the_machines_of_a_lower_one_and_says_so() -> None:
    low = JobFacts("low", 1, NOW - 2 * HOLD_NS, True, workers_min=3)
    view = PoolView([low, JobFacts("high", 2, NOW, priority=1, workers_min=2)], machines(3, job="low"))
    found = decide("priority", view)
    assert found.nodes == {"low": (), "high": ("n0", "n1", "n2")}
    assert "gave its machines to high" in found.jobs_why["low"]
    same = replace(view, jobs=[low, JobFacts("same", 2, NOW, workers_min=2)])
    assert decide("priority", same).nodes == {"low": ("n0", "n1", "n2")}


def test_a_matching_that_cannot_be_is_not_said_to_be_one() -> None:
    """The job that begins wants the fast machine, and would then have none that can hold its parameters."""
    nodes = [
        NodeFacts("had", 16 * GIB, job="runs"),
        NodeFacts("fast", 16 * GIB, shard=False, work_per_s=9.0),
        NodeFacts("slow", 16 * GIB, work_per_s=1.0),
    ]
    jobs = [JobFacts("runs", 1, NOW, True), JobFacts("waits", 2, NOW - AGEING_NS, workers_max=1)]
    found = scheduler("gale_shapley")(PoolView(jobs, nodes), NOW)
    assert found.plan.nodes == {"runs": ("fast", "had"), "waits": ("slow",)}
    assert found.reason.startswith("by shares alone") and found.plan.jobs_why["waits"].endswith("by its share")


def test_a_job_that_made_nothing_of_its_machines_keeps_the_next_ones_longer() -> None:
    had = JobFacts("had", 1, NOW - 2 * HOLD_NS, True)
    view = PoolView([had, JobFacts("waits", 2, NOW - 5 * AGEING_NS)], machines(1, job="had"))
    assert decide("priority", view).nodes["waits"] == ("n0",)
    longer = replace(had, hold_ns=next_hold_ns(next_hold_ns(HOLD_NS, False), False))
    assert longer.hold_ns == 4 * HOLD_NS
    assert decide("priority", replace(view, jobs=[longer, view.jobs[1]])).nodes == {"had": ("n0",)}
    assert next_hold_ns(longer.hold_ns, True) == HOLD_NS
    assert next_hold_ns(HOLD_MAX_NS, False) == HOLD_MAX_NS


@pytest.mark.parametrize("name", NAMES[1:])
@pytest.mark.parametrize("low", [0, -3])
def test_nobody_starves(name: str, low: int) -> None:
    """A job that needs the whole pool gets it, though higher ones fill it for ever and small ones keep coming."""
    jobs = [JobFacts("whole", 1, NOW, priority=low, workers_min=4)]
    jobs += [JobFacts(f"s{i}", 2 + i, NOW, priority=3) for i in range(6)]
    view = PoolView(jobs, machines(4))
    now = NOW
    bound_ns = (3 - low + 2) * AGEING_NS + 10 * AGEING_NS
    while now - NOW < bound_ns:
        found = decide(name, view, now)
        if found.nodes.get("whole"):
            return
        view = carried_out(view, found, now)
        now += 5 * NS_PER_S
        if (now - NOW) // NS_PER_S % 50 == 0:  # one of the small ones is over, and another comes
            ended = next(job for job in view.jobs if job.job != "whole" and job.begun)
            fresh = JobFacts(f"t{now}", now, now, priority=3)
            nodes = [replace(n, job="") if n.job == ended.job else n for n in view.nodes]
            view = replace(view, jobs=[j for j in view.jobs if j is not ended] + [fresh], nodes=nodes)
    raise AssertionError("it starves")


def test_capability_gives_fast_machines_to_the_first_and_keeps_alike_ones_together() -> None:
    nodes = [NodeFacts(f"n{i}", 16 * GIB, 4, work_per_s=(1e8 if i % 2 else 1e6)) for i in range(4)]
    jobs = [JobFacts("a", 1, workers_min=2, workers_max=2), JobFacts("b", 2, workers_min=2, workers_max=2)]
    found = decide("capability", PoolView(jobs, nodes))
    assert found.nodes == {"a": ("n1", "n3"), "b": ("n0", "n2")}


def test_capability_swaps_a_slow_machine_for_an_idle_fast_one() -> None:
    slow = NodeFacts("slow", 16 * GIB, 4, job="a", work_per_s=1e6)
    job = JobFacts("a", 1, NOW - 2 * HOLD_NS, True, workers_max=1)
    fast = NodeFacts("fast", 16 * GIB, 4, work_per_s=1e7)
    assert decide("capability", PoolView([job], [slow, fast])).nodes == {"a": ("fast",)}
    assert decide("capability", PoolView([job], [replace(slow, holds=True), fast])).nodes == {"a": ("slow",)}


def test_a_matching_gives_large_machines_to_those_that_need_them() -> None:
    nodes = [NodeFacts("big", 64 * GIB, 64, work_per_s=1e9), NodeFacts("small", 4 * GIB, 4, work_per_s=1e6)]
    jobs = [JobFacts("a", 1, workers_max=1), JobFacts("b", 2, memory_bytes=32 * GIB, workers_max=1)]
    for name in NAMES[1:]:
        assert decide(name, PoolView(jobs, nodes)).nodes == {"a": ("small",), "b": ("big",)}


def test_a_machine_near_the_data_is_preferred() -> None:
    jobs = [JobFacts("a", 1, workers_max=1, local=frozenset({"n2"})), JobFacts("b", 2, workers_max=1)]
    for name in NAMES:
        assert decide(name, PoolView(jobs, machines(3))).nodes["a"] == ("n2",)


def test_every_idle_machine_says_why() -> None:
    jobs = [JobFacts("a", 1, memory_bytes=32 * GIB), JobFacts("b", 2, workers_max=1)]
    for name in NAMES:
        found = decide(name, PoolView(jobs, machines(2)))
        assert found.jobs_why["a"].startswith("it waits: it needs 1 machines with 32.0 GiB at once; 0 of 2 fit")
        assert found.nodes_why["n1"] == "idle: a needs 32.0 GiB, this machine has 16.0"
        assert decide(name, PoolView([], machines(1))).nodes_why == {"n0": "idle: no job waits"}


def test_a_wrong_name_and_a_quota_of_nothing_are_refused() -> None:
    with pytest.raises(UserError, match="did you mean 'priority'"):
        scheduler("prioritty")
    with pytest.raises(UserError, match="quota of queue 'a' is 0"):
        check_quotas({"a": 0})
