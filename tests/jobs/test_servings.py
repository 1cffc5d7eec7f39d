"""What a front may ask of a coordinator, answered over a pool of stages without wires."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import pytest
from tests.roles.pool_of_stages import PoolOfStages

from medley.jobs.servings import NOTE_NBYTES_MAX, ServingDesk
from medley.protocol.errors import UserError
from medley.protocol.events import CoordinatorEvent
from medley.roles.coordinator import Coordinator
from medley.runtimes.clock import SystemClock

BEGIN = {"name": "chat", "endpoint": "tcp://10.0.0.9:7080", "key": ""}


@dataclass
class Host:
    """As much of the coordinator's host as the desk knows: every event is a batch of its own."""

    pool: PoolOfStages
    clock: SystemClock = field(default_factory=SystemClock)
    options: SimpleNamespace = field(default_factory=lambda: SimpleNamespace(encrypt=False))
    batch: asyncio.Event = field(default_factory=asyncio.Event)
    asked: int = 0

    @property
    def role(self) -> Coordinator:
        return self.pool.coordinator

    def post(self, event: CoordinatorEvent) -> None:
        self.asked += 1
        self.pool.say(event)
        self.turn()

    def turn(self) -> None:
        done, self.batch = self.batch, asyncio.Event()
        done.set()
        asyncio.get_running_loop().call_soon(self.turn)  # a tick comes soon

    async def settled(self) -> None:
        await self.batch.wait()


@pytest.fixture
def pool() -> PoolOfStages:
    return PoolOfStages("a", "b")


@pytest.fixture
def host(pool: PoolOfStages) -> Host:
    return Host(pool)


class Asks:
    def __init__(self, host: Host) -> None:
        self._desk = ServingDesk(cast(Any, host))

    async def __call__(self, method: str, **body: Any) -> dict[str, Any]:
        return await self._desk.questions[method](body)


@pytest.fixture
def ask(host: Host) -> Asks:
    return Asks(host)


async def test_the_first_question_is_answered_at_once_and_the_next_one_when_there_is_news(
    pool: PoolOfStages, host: Host, ask: Asks
) -> None:
    job = (await ask("serve_begin", **BEGIN))["job"]
    first = await ask("serve_news", job=job, after=0)
    assert [(m["name"], m["endpoint"], m["cores"], m["leaving"]) for m in first["machines"]] == [
        ("a", "tcp://a:1", 2, ""),
        ("b", "tcp://b:1", 2, ""),
    ]
    assert (first["known"], first["gone"], first["ended"]) == (True, [], "")
    waiting = asyncio.create_task(ask("serve_news", job=job, after=first["number"]))
    for _ in range(5):
        await host.settled()
    assert not waiting.done()
    pool.machines["a"].slow = True
    pool.dies("a")
    news = await waiting
    assert [m["name"] for m in news["machines"]] == ["b"]
    assert news["gone"] == [{"name": "a", "reason": "its engine ended: killed"}]
    assert news["number"] > first["number"]


async def test_a_question_is_answered_when_the_serving_ends(host: Host, ask: Asks) -> None:
    job = (await ask("serve_begin", **BEGIN))["job"]
    number = (await ask("serve_news", job=job, after=0))["number"]
    waiting = asyncio.create_task(ask("serve_news", job=job, after=number))
    await host.settled()
    await ask("serve_end", job=job)
    assert (await waiting)["ended"] == "its front end stopped"
    late = await ask("serve_news", job=job, after=number)
    assert (late["ended"], late["machines"]) == ("its front end stopped", [])


async def test_a_front_that_nobody_knows_is_told_to_begin_again_and_keeps_its_machines(
    pool: PoolOfStages, ask: Asks
) -> None:
    job = (await ask("serve_begin", **BEGIN))["job"]
    before = await ask("serve_news", job=job, after=0)
    pool.restart()
    assert not (await ask("serve_news", job=job, after=before["number"]))["known"]
    assert (await ask("serve_begin", **BEGIN, job=job))["job"] == job
    after = await ask("serve_news", job=job, after=before["number"])
    assert after["number"] > before["number"]
    assert [m["endpoint"] for m in after["machines"]] == [m["endpoint"] for m in before["machines"]]


async def test_a_suspect_is_named_with_the_engine_that_is_meant(pool: PoolOfStages, ask: Asks) -> None:
    job = (await ask("serve_begin", **BEGIN))["job"]
    since = (await ask("serve_news", job=job, after=0))["machines"][0]["since"]
    await ask("serve_suspect", job=job, machine="a", since=since + 1, reason="of another")
    assert len(pool.machines["a"].engines) == 1
    await ask("serve_suspect", job=job, machine="a", since=since, reason="no answer")
    assert len(pool.machines["a"].engines) == 2
    with pytest.raises(UserError, match="no machine 'c'"):
        await ask("serve_suspect", job=job, machine="c")


async def test_what_a_serving_may_have_is_said_by_the_front(pool: PoolOfStages, ask: Asks) -> None:
    job = (await ask("serve_begin", **BEGIN, machines=["b"], priority=2))["job"]
    (serving,) = (await ask("servings"))["servings"]
    assert serving["machines"] == [{"name": "b", "state": "serves", "leaving": ""}]
    assert (serving["job"], serving["priority"], serving["note"]) == (job, 2, None)
    await ask("serve_release", job=job, machines=["b"])
    assert (await ask("servings"))["servings"][0]["machines"] == []
    assert pool.coordinator.pool["b"].job == ""


async def test_a_note_is_kept_while_its_serving_lives_and_never_grows_beyond_bounds(host: Host, ask: Asks) -> None:
    job = (await ask("serve_begin", **BEGIN))["job"]
    await ask("serve_note", job=job, note={"tokens_per_s": 3})
    assert bytes((await ask("servings"))["servings"][0]["note"]) == b'{"tokens_per_s":3}'
    with pytest.raises(UserError, match="at most 256 KiB"):
        await ask("serve_note", job=job, note={"reason": "x" * NOTE_NBYTES_MAX})
    with pytest.raises(UserError, match="JSON object"):
        await ask("serve_note", job=job, note=[])
    await ask("serve_end", job=job)
    assert (await ask("servings"))["servings"] == []
    with pytest.raises(UserError, match="is over: its front end stopped"):
        await ask("serve_note", job=job, note={})


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ({"endpoint": ""}, "must say where it listens"),
        ({"endpoint": "tcp://0.0.0.0:1"}, "must say where it listens"),
        ({"key": "AAAA"}, "must say where it listens"),
        ({"machines": ["c"]}, "no machine 'c'"),
        ({"machines": "a"}, "'machines' is a list of names"),
        ({"weight": 0}, "weight is above 0"),
        ({"machines_max": -1}, "not negative"),
        ({"memory_gib": "inf"}, "finite"),
        ({"weight": "nan"}, "finite"),
        ({"priority": "high"}, "a serving cannot be so"),
    ],
)
async def test_what_cannot_be_served_is_said_in_a_sentence(ask: Asks, body: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        await ask("serve_begin", **{**BEGIN, **body})
