"""A stage's engine process: what it answers to a front's words, with real weights, planes and processes."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import torch
from tests.runtimes.stages import Child, HandFront, model_json, opening
from tests.tinymodels import saved, tiny
from tests.waiting import until_async

from medley.concurrency import TaskGroup
from medley.engines.stage_wire import encode_tokens
from medley.models.described import fingerprint
from medley.models.weightfiles import WeightFiles, directory_files
from medley.protocol.stages.words import (
    NOWHERE,
    Alive,
    Drawn,
    Free,
    Load,
    Measure,
    Measured,
    Missing,
    Opening,
    Pass,
    Probe,
    Reach,
    Reached,
    Refusal,
    Replicate,
    Row,
    Shadow,
    StageFailed,
    StageStatus,
    Unload,
    Unloaded,
)
from medley.runtimes.children.environment import COMPUTE_FACTOR, MEMORY_SHARE
from medley.serving.weights_keeper import WeightsKeeper

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]

PROMPT = [5, 17, 99, 42, 8, 200, 3]
OTHER = [7, 7, 61, 250]
REQUESTS = itertools.count(1)


@pytest.fixture(scope="module")
def network() -> Any:
    return tiny("llama")


@pytest.fixture(scope="module")
def directory(network: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(network, tmp_path_factory.mktemp("model"))


def expected(network: Any, prompt: list[int], count: int) -> list[int]:
    out = network.generate(torch.tensor([prompt]), max_new_tokens=count, do_sample=False, eos_token_id=None)
    return out[0, len(prompt) :].tolist()


@asynccontextmanager
async def met(directory: Path, *children: Child) -> AsyncIterator[HandFront]:
    """Their processes, which know each other and the front, which has the weights."""
    weights = WeightFiles.open(directory_files(directory))
    front = await HandFront.open(WeightsKeeper(weights, fingerprint(weights)))
    async with TaskGroup() as tasks:
        running = [tasks.create_task(child.process.run()) for child in children]
        try:
            await front.meet(list(children))
            yield front
        finally:
            for task in running:
                task.cancel()
            await front.plane.close()


@dataclass
class Three:
    """Two halves of the model on `a` and `b`; `c` has what `a` has, from the front, and is in no layout at first."""

    front: HandFront
    model: str
    a: Child
    b: Child
    c: Child

    def lay_out(self) -> None:
        self.front.lay_out([(self.a, 0, 2), (self.b, 2, 4)])


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def three(directory: Path) -> AsyncIterator[Three]:
    a, b, c = Child("a"), Child("b"), Child("c")
    async with met(directory, a, b, c) as front:
        here, elsewhere = model_json(directory, str(directory)), model_json(directory, "")
        for child, model, first, end in ((a, here, 0, 2), (b, here, 2, 4), (c, elsewhere, 0, 2)):
            loaded = await front.load(child, model, first, end)
            assert (loaded.first, loaded.end) == (first, end)
            assert loaded.nbytes > 0
        yield Three(front, elsewhere, a, b, c)


@pytest.fixture
def request_id() -> int:
    return next(REQUESTS)


# -- passes -----------------------------------------------------------------------------------


async def test_two_stages_give_the_tokens_of_the_whole_model(three: Three, network: Any, request_id: int) -> None:
    three.lay_out()
    assert await three.front.generate(request_id, PROMPT, 12) == expected(network, PROMPT, 12)


async def test_rows_of_several_requests_go_together(three: Three, network: Any) -> None:
    three.lay_out()
    one, two = next(REQUESTS), next(REQUESTS)
    rows = [Row(one, 0, len(PROMPT), 1), Row(two, 0, len(OTHER), 1)]
    drawn = await three.front.passed(rows, PROMPT + OTHER, [one, two])
    assert [d.token for d in drawn.draws] == [expected(network, p, 1)[0] for p in (PROMPT, OTHER)]
    assert [(d.request, d.position) for d in drawn.draws] == [(one, len(PROMPT)), (two, len(OTHER))]
    assert len(drawn.spent_ns) == 2


async def test_log_probabilities_come_with_the_draws_where_they_were_asked_for(
    three: Three, network: Any, request_id: int
) -> None:
    three.lay_out()
    asked = Opening(request_id, 0.0, 1.0, 0, 0, 0, 3, 0, 0)
    drawn = await three.front.passed([Row(request_id, 0, len(PROMPT), 1)], PROMPT, [asked])
    logits = network(torch.tensor([PROMPT])).logits[0, -1]
    values, tokens = torch.log_softmax(logits, -1).topk(3)
    assert [one.token for one in drawn.draws[0].top] == tokens.tolist()
    assert [one.logprob for one in drawn.draws[0].top] == pytest.approx(values.tolist(), abs=1e-4)


async def test_a_drafted_row_is_verified_at_every_position(three: Three, network: Any, request_id: int) -> None:
    three.lay_out()
    following = expected(network, PROMPT, 4)
    row = Row(request_id, 0, len(PROMPT) + 3, 4)
    drawn = await three.front.passed([row], PROMPT + following[:3], [request_id])
    assert [d.token for d in drawn.draws] == following


async def test_two_hops_may_be_on_one_machine(three: Three, network: Any, request_id: int) -> None:
    three.front.lay_out([(three.a, 0, 1), (three.a, 1, 2), (three.b, 2, 3), (three.b, 3, 4)])
    assert await three.front.generate(request_id, PROMPT, 3) == expected(network, PROMPT, 3)


@pytest.mark.parametrize("wire", ["bf16", "int8"])
async def test_hidden_states_may_travel_smaller(three: Three, request_id: int, wire: Any) -> None:
    three.front.lay_out([(three.a, 0, 2), (three.b, 2, 4)], wire)
    assert len(await three.front.generate(request_id, PROMPT, 3)) == 3


async def test_a_row_beyond_what_is_held_is_refused_and_nothing_changes(
    three: Three, network: Any, request_id: int
) -> None:
    three.lay_out()
    number = three.front.send([Row(request_id, 5, 1, 1)], [9], [request_id])
    refusal = await three.front.answer(Refusal, lambda w: w.batch == number)
    assert (refusal.kind, refusal.request, refusal.held, refusal.place) == ("gap", request_id, 0, 0)
    assert await three.front.generate(request_id, PROMPT, 2) == expected(network, PROMPT, 2)


async def test_what_cannot_be_computed_is_refused_and_hurts_nobody(three: Three, network: Any, request_id: int) -> None:
    three.lay_out()
    wrong = three.front.send([Row(request_id, 0, 1, 1)], [100_000], [request_id])
    assert (await three.front.answer(Refusal, lambda w: w.batch == wrong)).kind == "bad"
    assert await three.front.generate(next(REQUESTS), PROMPT, 2) == expected(network, PROMPT, 2)


async def test_garbage_is_dropped_and_hurts_nobody(three: Three, network: Any, request_id: int) -> None:
    three.lay_out()
    front, first = three.front, Row(request_id, 0, 4, 0)
    short = Pass(front.generation, 1, 0, (first,), (opening(request_id),), (), "tokens", 0, ())
    front.post(three.a.address, short, encode_tokens([1, 2]))
    front.post(three.a.address, Drawn(1, 1, (), ()))
    front.raw(three.a.address, b"\xff" * 100)
    front.post(three.a.address, Shadow(front.address, request_id, 0, 2, 0, 4, 1, 1, "fp32"), [b"12"])
    front.post(three.a.address, Shadow(front.address, request_id, 5, 99, 0, 4, 1, 1, "int8"))
    front.post(three.a.address, Replicate(front.number(), 7, 3, "c", three.c.address))
    front.post(three.a.address, Replicate(front.number(), 7, 3, "c", NOWHERE))
    assert await front.generate(request_id, PROMPT, 2) == expected(network, PROMPT, 2)


# -- generations ------------------------------------------------------------------------------


async def test_a_pass_of_an_older_generation_is_not_computed(three: Three, request_id: int) -> None:
    three.lay_out()
    front = three.front
    await front.generate(request_id, PROMPT, 1)
    old = Pass(front.generation, 999_999, 0, (Row(request_id, 0, 1, 1),), (), (), "tokens", 0, ())
    three.lay_out()
    front.post(three.a.address, old, encode_tokens([4]))
    assert (await front.held(three.a, 0, 2))[request_id] == len(PROMPT)
    assert not [w for w in front.heard if isinstance(w, Drawn) and w.batch == 999_999]


async def test_a_pass_that_is_early_waits_for_its_layout(three: Three, network: Any, request_id: int) -> None:
    three.lay_out()
    front = three.front
    row, number = Row(request_id, 0, len(PROMPT), 1), front.number()
    early = Pass(front.generation + 1, number, 0, (row,), (opening(request_id),), (), "tokens", 0, ())
    front.post(three.a.address, early, encode_tokens(PROMPT))
    await front.held(three.a, 0, 2)
    three.lay_out()
    drawn = await front.answer(Drawn, lambda w: w.batch == number)
    assert drawn.draws[0].token == expected(network, PROMPT, 1)[0]


# -- copies -----------------------------------------------------------------------------------


async def test_a_copy_holds_what_its_source_holds_and_goes_on_in_its_place(
    three: Three, network: Any, request_id: int
) -> None:
    three.lay_out()
    front, a, c = three.front, three.a, three.c
    tokens = await front.generate(request_id, PROMPT, 3)
    front.post(a.address, Replicate(front.number(), 0, 2, "c", c.address))
    for _ in range(3):
        drawn = await front.passed([Row(request_id, len(PROMPT) + len(tokens) - 1, 1, 1)], [tokens[-1]])
        tokens.append(drawn.draws[0].token)
    held = (await front.held(a, 0, 2))[request_id]
    assert held == len(PROMPT) + 5
    await until_async(lambda: _holds(front, c, request_id, held), what="the copy is whole")
    front.post(a.address, Replicate(front.number(), 0, 2, "c", NOWHERE))
    front.lay_out([(c, 0, 2), (three.b, 2, 4)])
    opened = [request_id]
    for _ in range(4):
        drawn = await front.passed([Row(request_id, len(PROMPT) + len(tokens) - 1, 1, 1)], [tokens[-1]], opened)
        tokens.append(drawn.draws[0].token)
        opened = []
    assert tokens == expected(network, PROMPT, 10)


async def _holds(front: HandFront, child: Child, request: int, positions: int) -> bool:
    return (await front.held(child, 0, 2)).get(request) == positions


async def test_a_copy_asks_for_what_it_misses(three: Three, request_id: int) -> None:
    front = three.front
    word = Shadow(front.address, request_id, 0, 2, 6, 1, 2, 8, "fp32")
    front.post(three.c.address, word, [bytes(2 * 2 * 2 * 8 * 4)])
    missing = await front.answer(Missing, lambda w: w.request == request_id)
    assert missing == Missing("c", request_id, 0, 2, 0)


async def test_a_freed_request_is_forgotten_everywhere_its_copies_too(three: Three, request_id: int) -> None:
    three.lay_out()
    front, a, c = three.front, three.a, three.c
    front.post(a.address, Replicate(front.number(), 0, 2, "c", c.address))
    await front.generate(request_id, PROMPT, 2)
    await until_async(lambda: _holds(front, c, request_id, len(PROMPT) + 1), what="the copy is whole")
    front.post(a.address, Free((request_id,)))
    assert request_id not in await front.held(a, 0, 2)
    await until_async(lambda: _holds_not(front, c, request_id), what="the copy is forgotten")
    front.post(a.address, Replicate(front.number(), 0, 2, "c", NOWHERE))


async def _holds_not(front: HandFront, child: Child, request: int) -> bool:
    return request not in await front.held(child, 0, 2)


# -- what is loaded, and what is said ---------------------------------------------------------


async def test_layers_come_and_go_beside_the_others(three: Three, network: Any, request_id: int) -> None:
    front, c = three.front, three.c
    await front.load(c, three.model, 2, 4)
    front.lay_out([(c, 0, 4)])
    assert await front.generate(request_id, PROMPT, 2) == expected(network, PROMPT, 2)
    number = front.number()
    front.post(c.address, Unload(number, 2, 4))
    await front.answer(Unloaded, lambda w: w.number == number)
    refused = front.send([Row(request_id, 0, 1, 1)], [4])
    assert (await front.answer(Refusal, lambda w: w.batch == refused)).kind == "bad"


@pytest.mark.parametrize(
    "wrong", ["{", '{"name": "x"}'], ids=["a text that is no JSON", "a description that lacks its words"]
)
async def test_a_model_that_cannot_be_loaded_is_said(three: Three, wrong: str) -> None:
    number = three.front.number()
    three.front.post(three.a.address, Load(number, wrong, 0, 1, 1000))
    failed = await three.front.answer(StageFailed, lambda w: w.number == number)
    assert not failed.memory
    assert failed.reason


async def test_every_second_a_stage_says_how_it_is(three: Three, request_id: int) -> None:
    three.lay_out()
    await three.front.generate(request_id, PROMPT, 2)
    three.front.heard.clear()
    status = await three.front.answer(StageStatus, lambda w: w.node == "b" and w.requests > 0)
    assert status.loaded == (2, 3)
    assert status.kv_nbytes > 0
    assert status.memory_nbytes > 1 << 20
    assert status.pass_s > 0
    assert 0 <= status.busy <= 1


async def test_a_probe_walks_the_hops(three: Three) -> None:
    three.lay_out()
    front, number = three.front, three.front.number()
    await front.held(three.b, 2, 4)
    front.post(three.a.address, Probe(front.generation, number, 0))
    for place in (0, 1):
        await front.answer(Alive, lambda w, place=place: (w.number, w.place) == (number, place))


async def test_one_stage_times_the_way_to_another(three: Three) -> None:
    front, number = three.front, three.front.number()
    front.post(three.a.address, Reach(number, three.b.address, three.a.address, 1 << 20))
    reached = await front.answer(Reached, lambda w: w.number == number)
    assert reached.rtt_s > 0
    assert reached.bandwidth_bytes_per_s > 0


# -- processes of their own -------------------------------------------------------------------


async def test_a_probe_is_answered_during_a_long_pass_and_a_kill_is_seen(directory: Path) -> None:
    slow = Child("slow", environment={COMPUTE_FACTOR: "500"})
    async with met(directory, slow) as front:
        await front.load(slow, model_json(directory, str(directory)), 0, 4)
        front.lay_out([(slow, 0, 4)])
        batch = front.send([Row(1, 0, len(PROMPT), 1)], PROMPT, [1])
        probe = front.number()
        front.post(slow.address, Probe(front.generation, probe, 0))
        alive = await front.answer(Alive, lambda w: w.number == probe)
        assert not [w for w in front.heard if isinstance(w, Drawn)], "the pass has not ended yet"
        assert alive.busy_ns >= 0
        await front.answer(Drawn, lambda w: w.batch == batch)
        slow.process.kill()
        await until_async(lambda: slow.exited, what="the end of the process")
        assert slow.exited is not None
        assert slow.exited.reason == "killed"


async def test_a_machine_is_measured_and_what_it_has_no_memory_for_is_not_loaded(directory: Path) -> None:
    small = Child("small", environment={MEMORY_SHARE: "0.000001"})
    async with met(directory, small) as front:
        model, number = model_json(directory, str(directory)), front.number()
        front.post(small.address, Measure(number, model))
        measured = await front.answer(Measured, lambda w: w.number == number)
        assert min(*measured.layer_s, *measured.head_s) > 0
        front.post(small.address, Load(number + 1, model, 0, 4, 1000))
        failed = await front.answer(StageFailed, lambda w: w.number == number + 1)
        assert failed.memory
        assert "free" in failed.reason
