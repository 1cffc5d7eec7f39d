"""Which way a connection takes: choices over given times, then planes that meet over pipes of a real relay."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from tests.transports.tensors_setup import FAST, Shelf, ask_for, header_of
from tests.transports.tunnel_setup import Bench, bench
from tests.waiting import until_async

from medley.protocol.errors import Unavailable
from medley.transports.tensors import Curve, Detour, Limits, Peer, TensorPlane, Transport, Ways
from medley.transports.tensors import ways as choosing
from medley.transports.tensors.ways import ASKED, SILENT, WRONG, Choice, Way
from medley.transports.tunnel.contract import Place, pipe_name

PEER = Peer("tcp://10.0.0.2:7080", b"k" * 32)
DETOUR = Detour("127.0.0.1:1", lambda peer, why: f"tcp://{why}:1")
AUTO = Ways("auto", DETOUR)


def test_without_a_detour_every_way_is_direct() -> None:
    for ways in (Ways(), Ways("grpc"), Ways("direct", DETOUR)):
        choice = Choice(ways)
        assert not choice.first(PEER, 0.0).relayed
        assert choice.other(PEER, Way("", 0.0), 1000.0) is None


def test_grpc_goes_by_detour_at_once_and_stays_there() -> None:
    choice = Choice(Ways("grpc", DETOUR))
    way = choice.first(PEER, 0.0)
    assert way.why == ASKED
    assert choice.other(PEER, way, 1000.0) is None
    choice.stands(PEER, way, 1000.0)
    assert not choice.worth_a_probe(PEER, way, 5000.0)


def test_patience_with_silence_follows_how_long_connections_take() -> None:
    def given_up(choice: Choice) -> float:
        times = [n / 100 for n in range(1000)]
        return next(t for t in times if choice.other(PEER, Way("", 0.0), t) is not None)

    quick, slow = Choice(AUTO), Choice(AUTO)
    for _ in range(50):
        quick.met(Way("", 0.0), 0.001)
    slow.met(Way("", 0.0), 0.4)
    assert given_up(quick) == pytest.approx(1.25, abs=0.02)
    assert given_up(slow) == pytest.approx(2.6, abs=0.02)
    slow.met(Way("", 0.0), 30.0)
    assert given_up(slow) == pytest.approx(3.0, abs=0.02)


def test_a_peer_that_answers_deserves_a_handshake() -> None:
    choice, way = Choice(AUTO), Way("", 0.0)
    choice.met(way, 0.5)
    assert choice.other(PEER, way, 3.0) is None
    assert choice.other(PEER, way, 4.1) == Way(WRONG, 4.1)


def test_somebody_else_is_left_at_once() -> None:
    assert Choice(AUTO).other(PEER, Way("", 0.0, wrong=True), 0.1) == Way(WRONG, 0.1)


def test_a_detour_that_fails_too_gives_the_direct_way_its_turn() -> None:
    choice, way = Choice(AUTO), Way(SILENT, 0.0)
    assert choice.other(PEER, way, 14.9) is None
    assert choice.other(PEER, way, 15.1) == Way("", 15.1)
    for _ in range(3):
        choice.refused(way)
    assert choice.other(PEER, way, 0.5) == Way("", 0.5)


def test_a_machine_that_refuses_may_be_about_to_come_back() -> None:
    choice, way = Choice(AUTO), Way("", 0.0)
    for _ in range(3):
        choice.refused(way)
    assert choice.other(PEER, way, 0.5) is None


def test_a_call_after_one_that_found_nobody_begins_where_that_one_ended() -> None:
    choice = Choice(AUTO)
    assert choice.other(PEER, Way("", 0.0), 2.0) == Way(SILENT, 2.0)
    assert choice.first(PEER, 7.0).why == SILENT
    restarted = Peer("tcp://10.0.0.2:7085", b"n" * 32)
    assert not choice.first(restarted, 7.0).relayed, "the engine may have died on a machine that is well"
    assert choice.other(PEER, Way(SILENT, 7.0), 30.0) == Way("", 30.0)
    assert not choice.first(PEER, 31.0).relayed, "the detour failed too"


def test_what_was_learnt_of_a_machine_is_remembered_for_a_while() -> None:
    choice, other_engine = Choice(AUTO), Peer("tcp://10.0.0.2:7081", b"l" * 32)
    choice.stands(PEER, Way(SILENT, 0.0), 1.0)
    assert choice.first(other_engine, 2.0).why == SILENT
    assert not choice.first(Peer("tcp://10.0.0.3:7080", b"m" * 32), 2.0).relayed
    assert not choice.first(other_engine, 302.0).relayed
    choice.stands(PEER, Way("", 3.0), 3.0)
    assert not choice.first(other_engine, 4.0).relayed


def test_a_relayed_machine_is_tried_directly_less_and_less_often() -> None:
    choice, way = Choice(AUTO), Way(SILENT, 0.0)
    choice.stands(PEER, way, 0.0)
    tried = [t for t in range(4000) if choice.worth_a_probe(PEER, way, float(t))]
    assert tried == [60, 180, 420, 900, 1500, 2100, 2700, 3300, 3900]


def test_where_one_connection_is_direct_again_the_others_follow() -> None:
    """Calls and posts to one engine, and engines of one machine, have connections of their own."""
    choice, way = Choice(AUTO), Way(SILENT, 0.0)
    for _ in range(2):
        choice.stands(PEER, way, 0.0)
    assert choice.worth_a_probe(PEER, way, 60.0)
    choice.stands(PEER, Way("", 60.0), 61.0)
    assert choice.worth_a_probe(PEER, way, 62.0)
    assert choice.other(PEER, Way("", 62.0), 66.0), "in vain: its port may be another"
    assert not choice.worth_a_probe(PEER, way, 67.0)
    assert choice.worth_a_probe(PEER, way, 127.0)


# -- planes over pipes ------------------------------------------------------------------------------------------------


@pytest.fixture
async def pool(tmp_path: Path) -> AsyncIterator[Bench]:
    async with bench(tmp_path) as made, asyncio.timeout(100):
        yield made


@pytest.fixture
def nowhere() -> Iterator[str]:
    """An endpoint that never answers: a backlog that is full, so that not even TCP stands."""
    with socket.socket() as full, socket.socket() as first:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        first.connect(full.getsockname())
        yield f"tcp://127.0.0.1:{full.getsockname()[1]}"


@asynccontextmanager
async def planes(
    pool: Bench, told: str, transport: Transport, shelf: Shelf, limits: Limits = FAST
) -> AsyncIterator[tuple[TensorPlane, TensorPlane, Peer]]:
    """A worker's plane on node a, a shard's on node b, and b as a is told of it: at `told`, whatever is there."""
    ours, theirs = Curve.generate(), Curve.generate()
    gate = await pool.node("a")

    def named(peer: Peer, why: str) -> str:
        return f"tcp://{gate.secret}.{why}.{pipe_name(peer.endpoint, peer.public_key or b'')}:1"

    async with (
        await TensorPlane.open(
            "127.0.0.1", identity=theirs, allow=lambda key: key == ours.public_key, handler=shelf, limits=limits
        ) as shard,
        await TensorPlane.open(
            "127.0.0.1",
            identity=ours,
            handler=Shelf(),
            ways=Ways(transport, Detour(gate.proxy, named)),
            limits=limits,
        ) as worker,
    ):
        peer = Peer(told or shard.endpoint, theirs.public_key)
        port = int(shard.endpoint.rpartition(":")[2])
        name = pipe_name(peer.endpoint, theirs.public_key)
        serving = await pool.node("b")
        serving._own = {name: ("127.0.0.1", port)}.get
        pool.exchange.places[name] = Place("b", "shard 0", peer.endpoint)
        yield worker, shard, peer


async def test_a_machine_that_does_not_answer_is_reached_through_the_coordinator(pool: Bench, nowhere: str) -> None:
    content, shelf = os.urandom(5_000_000), Shelf()
    async with planes(pool, nowhere, "auto", shelf) as (worker, _, peer):
        assert await worker.put(peer, header_of("u", content), [content]) == b"thanks for u"
        shelf.stock["p"] = [content]
        assert bytes(await worker.get(peer, ask_for("p"), bytearray)) == content
        assert worker.counters()["connections_relayed"] == 1
    assert shelf.arrived["u"] == content
    assert [why for _, _, why in pool.exchange.told] == ["silent"]


async def test_the_address_of_another_machine_is_not_mistaken_for_the_peer(pool: Bench) -> None:
    """In two homes the same private address is two machines."""
    stranger = await TensorPlane.open("127.0.0.1", identity=Curve.generate(), handler=Shelf(), limits=FAST)
    async with stranger, planes(pool, stranger.endpoint, "auto", Shelf()) as (worker, _, peer):
        assert await worker.put(peer, header_of("u", b"x"), [b"x"]) == b"thanks for u"
        assert worker.counters()["connections_direct"] == 0
    assert [why for _, _, why in pool.exchange.told] == ["wrong"]


@pytest.mark.parametrize(("transport", "relayed"), [("auto", 0), ("direct", 0), ("grpc", 1)])
async def test_who_can_be_reached_is_reached_directly_unless_told_otherwise(
    pool: Bench, transport: Transport, relayed: int
) -> None:
    async with planes(pool, "", transport, Shelf()) as (worker, _, peer):
        assert await worker.put(peer, header_of("u", b"x"), [b"x"]) == b"thanks for u"
        assert worker.counters()["connections_relayed"] == relayed
        assert worker.counters()["connections_direct"] == 1 - relayed


async def test_direct_never_takes_the_detour(pool: Bench, nowhere: str) -> None:
    async with planes(pool, nowhere, "direct", Shelf(), replace(FAST, floor_s=2.0, slack_s=0.1)) as (worker, _, peer):
        with pytest.raises(Unavailable):
            await worker.put(peer, header_of("u", b"x"), [b"x"])
    assert not pool.exchange.called


async def test_who_is_dead_is_given_up_although_there_are_two_ways_to_try(pool: Bench) -> None:
    """Nobody listens, and the coordinator knows of no such engine: neither way may lend the other one its time."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        told = f"tcp://127.0.0.1:{closed.getsockname()[1]}"
    async with planes(pool, told, "auto", Shelf(), replace(FAST, floor_s=2.0, slack_s=0.1)) as (worker, _, peer):
        pool.exchange.places.clear()
        worker.post(peer, [b"news"])
        with pytest.raises(Unavailable):
            await asyncio.wait_for(worker.put(peer, header_of("u", b"x"), [b"x"]), 30)

        async def dropped() -> bool:
            return worker.counters()["posts_dropped"] == 1

        await until_async(dropped, what="the end of the post that nobody takes")


async def test_a_pipe_that_breaks_costs_a_window_and_no_byte(pool: Bench) -> None:
    content, shelf = os.urandom(24_000_000), Shelf()
    broken: list[int] = []

    async with planes(pool, "", "grpc", shelf, replace(FAST, chunk_nbytes=65536)) as (worker, _, peer):

        def progress(done: int, total: int) -> None:
            if done > len(content) * (len(broken) + 1) / 4 and len(broken) < 2:
                broken.append(done)
                pool.relay.expel("b", "a test cuts it")

        assert await worker.put(peer, header_of("u", content), [content], progress) == b"thanks for u"
        assert len(content) <= worker.counters()["bytes_sent"] < 2 * len(content)
    assert len(broken) == 2
    assert shelf.arrived["u"] == content
    assert shelf.calls["offer"] == 1, "what had arrived was kept; nobody was asked again"


async def test_a_relayed_pair_turns_to_the_direct_way_when_that_works(
    pool: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choosing, "PROBE_LAST_S", 0.5)
    shelf = Shelf()
    async with planes(pool, "", "auto", shelf) as (worker, _, peer):
        choice = worker._engine._calls.dialling._choice
        choice.relayed["tcp://127.0.0.1"] = choosing._Known(SILENT, until=10**9, probe_s=0.2)
        assert await worker.put(peer, header_of("u0", b"x"), [b"x"]) == b"thanks for u0"
        assert worker.counters()["connections_relayed"] == 1
        shelf.gate = asyncio.Event()  # a call in progress keeps the connection in use

        async def moved() -> bool:
            return worker.counters()["connections_direct"] == 1

        busy = asyncio.create_task(worker.put(peer, header_of("u1", b"y"), [b"y"]))
        await until_async(moved, what="the direct way")
        shelf.gate.set()
        assert await busy == b"thanks for u1"
