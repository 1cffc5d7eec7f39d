"""Which emulated link a machine stands behind, what its engines are told, and what others dial."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.waiting import until_async

from medley.concurrency import TaskGroup
from medley.protocol.codec import text
from medley.protocol.conditions import Network
from medley.protocol.engine import Opened, Progress
from medley.protocol.messages import Address
from medley.protocol.plan import Plan
from medley.protocol.spec import JobSpec
from medley.runtimes.children.environment import COMPUTE_FACTOR, HOST, LINK
from medley.runtimes.shaped import ShapedLink, Shaping, read_moved

NONE = Network()
CELLULAR = Network("cellular")


def plan(network: Network) -> str:
    return text(Plan(JobSpec(network=network), 16, 0, (), ()))


@pytest.fixture
def changes() -> list[str]:
    return []


def shaping(
    own: Network, room: Path, changes: list[str] | None = None, trains: bool = True, factor: float = 1.0
) -> Shaping:
    seen = [] if changes is None else changes
    return Shaping(own, "worker-1", trains, factor, room, lambda: seen.append("changed"))


def links(made: Shaping) -> Iterator[ShapedLink]:
    yield from made._links.values()


def hang_up(made: Shaping) -> None:
    for link in links(made):
        if link.proxy is not None:
            link.proxy._listener.close()


def test_without_a_network_nothing_of_it_exists(tmp_path: Path) -> None:
    made = shaping(NONE, tmp_path)
    made.assigned("a", plan(NONE))
    made.note()
    assert made.control is None
    assert made.environment("a", is_shard=False) == {}
    assert not list(links(made)) and not list(tmp_path.iterdir())


def test_a_jobs_network_comes_and_goes_with_the_job(tmp_path: Path, changes: list[str]) -> None:
    made = shaping(NONE, tmp_path, changes)
    made.assigned("a", plan(CELLULAR))
    made.assigned("a", plan(CELLULAR))  # its shard, too
    assert made.control is not None and changes == ["changed"]
    assert LINK in made.environment("a", is_shard=False)
    assert made.environment("b", is_shard=False) == {}, "another job has no part in it"
    made.left("a")
    assert made.control is None and changes == ["changed", "changed"]
    hang_up(made)


def test_a_machines_own_link_goes_before_that_of_its_jobs(tmp_path: Path, changes: list[str]) -> None:
    made = shaping(CELLULAR, tmp_path, changes)
    before = made.control
    made.assigned("a", plan(Network("satellite")))
    assert made.control is before and not changes
    assert [link.network for link in links(made)] == [CELLULAR]
    hang_up(made)


def test_machines_that_only_keep_parameters_are_meant_when_all_are(tmp_path: Path) -> None:
    made = shaping(NONE, tmp_path, trains=False)
    made.assigned("a", plan(CELLULAR))
    assert made.environment("a", is_shard=True) == {}
    made.assigned("b", plan(Network("cellular", machines="all")))
    told = made.environment("b", is_shard=True)
    assert told[LINK] and told[HOST] == "127.0.0.1"
    hang_up(made)


def test_a_straggler_is_told_how_slow_it_is(tmp_path: Path) -> None:
    made = shaping(Network("straggler"), tmp_path, factor=2.0)
    assert made.environment("a", is_shard=False)[COMPUTE_FACTOR] == "20"
    assert shaping(NONE, tmp_path, factor=3.0).environment("a", is_shard=False) == {COMPUTE_FACTOR: "3"}
    hang_up(made)


def test_classes_that_are_spared_meet_no_link(tmp_path: Path) -> None:
    spared = {"heartbeat": "none", "task": "none", "telemetry": "none"}
    made = shaping(Network("cellular", spared), tmp_path)
    assert made.control is None and LINK in made.environment("a", is_shard=False)
    only = shaping(Network("none", {"heartbeat": "cellular"}), tmp_path)
    assert only.control is not None and only.environment("a", is_shard=False) == {}
    hang_up(made)


def test_a_shard_is_reached_by_its_front(tmp_path: Path) -> None:
    async def reached() -> bytes:
        async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"hello")
            writer.close()
            await writer.wait_closed()

        def here() -> tuple[str, range]:
            return "127.0.0.1", range(0)

        made = shaping(Network("good", machines="all"), tmp_path)
        async with await asyncio.start_server(greet, "127.0.0.1", 0) as server, TaskGroup() as tasks:
            running = tasks.create_task(made.run())
            port = server.sockets[0].getsockname()[1]
            opened = Opened(Address(f"tcp://127.0.0.1:{port}", "key"))
            assert made.reported(("a", -1), False, opened, here) is opened, "nobody dials a worker"
            assert made.reported(("a", 0), True, Progress(1), here) == Progress(1)
            fronted = made.reported(("a", 0), True, opened, here)
            assert isinstance(fronted, Opened) and fronted.address.key == "key"
            assert fronted.address.endpoint != opened.address.endpoint
            reader, writer = await asyncio.open_connection("127.0.0.1", int(fronted.address.endpoint.split(":")[-1]))
            said = await reader.read()
            writer.close()
            await writer.wait_closed()
            running.cancel()
        made.note()
        return said

    assert asyncio.run(reached()) == b"hello"
    assert read_moved(tmp_path) == (5, 0)


def test_a_front_ends_with_its_engine(tmp_path: Path) -> None:
    """Or a shard that is started again and again takes one port after the other, until none is left."""

    async def dialled() -> bool:
        made = shaping(Network("good", machines="all"), tmp_path)
        opened = Opened(Address("tcp://127.0.0.1:9", "key"))
        async with TaskGroup() as tasks:
            running = tasks.create_task(made.run())
            ports = [_port(made.reported(("a", 0), True, opened, lambda: ("127.0.0.1", range(0)))) for _ in range(2)]
            await until_async(lambda: free(ports[0]), what="the end of the front of the engine before")
            kept = not free(ports[1])
            made.ended(("a", 0))
            await until_async(lambda: free(ports[1]), what="the end of the front")
            running.cancel()
        return kept

    assert asyncio.run(dialled())


def _port(report: object) -> int:
    assert isinstance(report, Opened)
    return int(report.address.endpoint.split(":")[-1])


def free(port: int) -> bool:
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True


def test_what_crossed_is_counted_over_the_lives_of_a_node(tmp_path: Path) -> None:
    for lives in (1, 2):
        made = shaping(CELLULAR, tmp_path)
        (link,) = links(made)
        link.moved.up_nbytes = 100
        link.moved.down_nbytes = 7
        made.note()
        assert read_moved(tmp_path) == (100 * lives, 7 * lives)
        hang_up(made)
    (tmp_path / "network.json").write_text("{")
    assert read_moved(tmp_path) == (0, 0)


def test_a_disk_that_takes_no_note_costs_the_note_and_not_the_node(tmp_path: Path) -> None:
    made = shaping(CELLULAR, tmp_path / "gone")
    (link,) = links(made)
    link.moved.up_nbytes = 100
    made.note()
    (tmp_path / "gone").mkdir()
    made.note()
    assert read_moved(tmp_path / "gone") == (100, 0), "written as soon as it can be"
    hang_up(made)


def test_an_outage_is_the_machines_whatever_the_class(tmp_path: Path) -> None:
    link = ShapedLink(Network("brownout", {"heartbeat": "brownout"}), "worker-1")
    other = ShapedLink(Network("brownout"), "worker-2")
    (mine,), (theirs,) = link._accesses.values(), other._accesses.values()
    assert mine.phase_s != theirs.phase_s
    link.cut(up=True, down=False)
    assert (mine.up.cut, mine.down.cut) == (True, False)
    for one in (link, other):
        assert one.proxy is not None
        one.proxy._listener.close()
