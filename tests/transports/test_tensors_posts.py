"""Posts between planes: whole, in order, bounded; from any thread, over every way; a peer's nonsense hurts nobody."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import xxhash
import zmq
import zmq.asyncio
from tests.transports.shaping_setup import OneLink, VirtualTimer
from tests.transports.tensors_setup import FAST, Shelf, header_of, peer_of
from tests.transports.tunnel_setup import bench
from tests.waiting import until_async

from medley.concurrency import TaskGroup
from medley.protocol.conditions import Conditions
from medley.protocol.errors import UserError
from medley.transports.shaping import Proxy
from medley.transports.tensors import Curve, Detour, Emulated, Limits, Peer, TensorPlane, Ways
from medley.transports.tensors.wire import HEADER_NBYTES, Frame, Type
from medley.transports.tunnel.contract import Place, pipe_name

PATIENT = replace(FAST, post_wait_s=60.0)


@dataclass
class Box:
    """What was posted here, and who was lost."""

    posts: list[tuple[bytes, memoryview]] = field(default_factory=list)
    lost: list[Peer] = field(default_factory=list)
    thread: str = ""

    def posted(self, key: bytes, payload: memoryview) -> None:
        self.thread = threading.current_thread().name
        self.posts.append((key, payload))

    @property
    def contents(self) -> list[bytes]:
        return [bytes(payload) for _, payload in self.posts]


@dataclass
class Pair:
    client: TensorPlane
    server: TensorPlane
    box: Box  # the server's
    lost: list[Peer]  # by the client

    @property
    def peer(self) -> Peer:
        return peer_of(self.server)

    async def arrived(self, count: int) -> list[bytes]:
        await until_async(lambda: len(self.box.posts) >= count, what=f"{count} posts")
        return self.box.contents


@asynccontextmanager
async def pair(
    keys: bool = False,
    limits: Limits = PATIENT,
    server_limits: Limits | None = None,
    posted: Callable[[bytes, memoryview], None] | None = None,
    ways: Ways | None = None,
) -> AsyncIterator[Pair]:
    ours, theirs = (Curve.generate(), Curve.generate()) if keys else (None, None)
    admitted = {ours.public_key} if ours else set()
    box, lost = Box(), Box()
    async with (
        await TensorPlane.open(
            "127.0.0.1",
            identity=theirs,
            allow=admitted.__contains__,
            handler=Shelf(),
            posted=posted or box.posted,
            limits=server_limits or limits,
        ) as server,
        await TensorPlane.open(
            "127.0.0.1", identity=ours, handler=Shelf(), lost=lost.lost.append, limits=limits, ways=ways
        ) as client,
    ):
        yield Pair(client, server, box, lost.lost)


@pytest.mark.parametrize("keys", [False, True], ids=["plain", "curve"])
async def test_posts_arrive_in_order_with_the_key_of_their_poster(keys: bool) -> None:
    async with pair(keys) as two:
        sent = [number.to_bytes(4) + os.urandom(number * 40) for number in range(500)]
        for content in sent:
            assert two.client.post(two.peer, [content[:4], memoryview(content)[4:]])
        assert await two.arrived(500) == sent
        assert {key for key, _ in two.box.posts} == {two.client.public_key or b""}
        assert two.box.thread == "medley-tensors"


@pytest.mark.parametrize("keys", [False, True], ids=["plain", "curve"])
async def test_the_largest_post_arrives_and_one_byte_more_is_the_callers_mistake(keys: bool) -> None:
    async with pair(keys) as two:
        most = two.client._limits.post_nbytes
        content = os.urandom(most)
        assert two.client.post(two.peer, [content])
        assert two.client.post(two.peer, [])
        assert await two.arrived(2) == [content, b""]
        with pytest.raises(ValueError, match="over the limit"):
            two.client.post(two.peer, [content, b"x"])


async def test_a_buffer_may_be_used_again_at_once_and_a_payload_stays_valid() -> None:
    async with pair() as two:
        buffer = bytearray(200_000)
        for number in range(50):
            buffer[:] = bytes([number]) * len(buffer)
            assert two.client.post(two.peer, [buffer])
        for number, content in enumerate(await two.arrived(50)):
            assert content == bytes([number]) * len(buffer)


async def test_a_post_larger_than_the_receiver_takes_is_refused_there() -> None:
    async with pair(server_limits=replace(PATIENT, post_nbytes=1000)) as two:
        for content in (b"a" * 1000, b"b" * 1001, b"c"):
            assert two.client.post(two.peer, [content])
        assert await two.arrived(2) == [b"a" * 1000, b"c"]
        assert two.server.counters()["frames_refused"] == 1


async def test_a_plane_that_takes_no_posts_refuses_them_and_goes_on() -> None:
    async with pair() as two:
        assert two.server.post(peer_of(two.client), [b"x"])
        await until_async(lambda: two.client.counters()["frames_refused"] == 1)
        assert await two.client.put(two.peer, header_of("a", b"y"), [b"y"]) == b"thanks for a"


async def test_a_peer_that_cannot_be_spoken_to_is_a_users_mistake() -> None:
    async with pair() as two:
        with pytest.raises(UserError, match="not a tensor endpoint"):
            two.client.post(Peer("nonsense"), [b"x"])
        with pytest.raises(UserError, match="without an identity"):
            two.client.post(Peer(two.peer.endpoint, b"k" * 32), [b"x"])


async def test_a_key_that_is_not_admitted_or_is_revoked_gets_nothing_through() -> None:
    async with pair(keys=True) as two:
        stranger = await TensorPlane.open(
            "127.0.0.1", identity=Curve.generate(), handler=Shelf(), limits=replace(FAST, post_wait_s=0.1)
        )
        async with stranger:
            assert stranger.post(two.peer, [b"let me in"])
            await until_async(lambda: stranger.counters()["posts_dropped"] == 1)
            assert stranger.backlog(two.peer) == 0
        two.client.post(two.peer, [b"before"])
        await two.arrived(1)
        assert two.client.public_key is not None
        two.server.revoke(two.client.public_key)
        two.client.post(two.peer, [b"after"])
        await until_async(lambda: two.server.counters()["frames_refused"] == 1)
        two.server.admit(two.client.public_key)
        two.client.post(two.peer, [b"again"])
        assert await two.arrived(2) == [b"before", b"again"]


async def test_nothing_is_posted_to_a_peer_whose_key_we_revoked() -> None:
    async with pair(keys=True) as two:
        assert two.peer.public_key is not None
        two.client.revoke(two.peer.public_key)
        two.client.post(two.peer, [b"x"])
        await until_async(lambda: two.client.counters()["posts_dropped"] == 1)
        assert not two.client.connected(two.peer)


async def test_many_threads_post_at_once_and_each_ones_order_is_kept() -> None:
    async with pair(limits=replace(PATIENT, posts=1200)) as two:

        def work(who: int) -> bool:
            return all(two.client.post(two.peer, [bytes([who]), number.to_bytes(2)]) for number in range(200))

        assert all(await asyncio.gather(*(asyncio.to_thread(work, who) for who in range(6))))
        contents = await two.arrived(1200)
    for who in range(6):
        assert [int.from_bytes(one[1:]) for one in contents if one[0] == who] == list(range(200))


# -- queues -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "bounds", [{"posts": 10}, {"posts_nbytes": 10 * (HEADER_NBYTES + 100)}], ids=["frames", "bytes"]
)
async def test_a_queue_is_bounded_and_what_waits_too_long_is_dropped(bounds: dict[str, int]) -> None:
    nowhere = Peer("tcp://127.0.0.1:1")
    async with pair(limits=replace(FAST, post_wait_s=0.1, **bounds)) as two:
        taken = [two.client.post(nowhere, [b"x" * 100]) for _ in range(12)]
        assert taken == [True] * 10 + [False] * 2
        assert two.client.backlog(nowhere) == 10 * (HEADER_NBYTES + 100)
        await until_async(lambda: two.client.counters()["posts_dropped"] == 10)
        assert two.client.counters()["posts_overflowed"] == 2
        assert two.client.backlog(nowhere) == 0
        assert two.client.post(nowhere, [b"x" * 100]), "there is room again"
        assert two.client.post(two.peer, [b"y"])
        assert await two.arrived(1) == [b"y"], "nobody else waited"


async def test_large_posts_count_until_they_have_left() -> None:
    """A receiver that does not read: what ZeroMQ holds is bounded as well."""
    gate = threading.Event()
    seen: list[int] = []

    def slow(key: bytes, payload: memoryview) -> None:
        gate.wait(20.0)
        seen.append(payload.nbytes)

    async with pair(posted=slow, limits=replace(PATIENT, posts_nbytes=8_000_000)) as two:
        large, count = os.urandom(1_000_000), 0
        try:
            while two.client.post(two.peer, [large]):
                count += 1
            assert count >= 7
            assert 7_000_000 < two.client.backlog(two.peer) <= 8_000_000
        finally:
            gate.set()
        await until_async(lambda: len(seen) == count, what="the rest")
        await until_async(lambda: two.client.backlog(two.peer) == 0)


async def test_a_closed_plane_takes_no_post() -> None:
    async with pair() as two:
        await two.client.close()
        assert not two.client.post(two.peer, [b"x"])


# -- loss -------------------------------------------------------------------------------------------------------------


async def test_a_peer_that_dies_is_told_at_once_and_one_that_comes_back_is_posted_to_again() -> None:
    box = Box()
    async with pair() as two:
        first = await TensorPlane.open("127.0.0.1", identity=None, handler=Shelf(), posted=box.posted)
        peer = peer_of(first)
        two.client.post(peer, [b"one"])
        await until_async(lambda: box.contents == [b"one"])
        assert two.client.connected(peer)
        await first.close()
        await until_async(lambda: two.lost == [peer])
        assert not two.client.connected(peer)
        two.client.post(peer, [b"two"])
        two.client.post(peer, [b"three"])
        port = int(peer.endpoint.rpartition(":")[2])
        async with await TensorPlane.open("127.0.0.1", port, identity=None, handler=Shelf(), posted=box.posted):
            await until_async(lambda: box.contents == [b"one", b"two", b"three"])
            assert two.client.connected(peer)
        await until_async(lambda: two.lost == [peer, peer])
        assert two.client.counters()["connections_lost"] == 2


async def test_what_the_program_does_wrong_is_counted_and_the_next_post_arrives() -> None:
    arrived: list[bytes] = []

    def faulty(key: bytes, payload: memoryview) -> None:
        arrived.append(bytes(payload))
        if len(arrived) < 200:
            raise RuntimeError("a fault of the program")

    async with pair(posted=faulty) as two:
        for number in range(200):
            two.client.post(two.peer, [number.to_bytes(2)])
        await until_async(lambda: len(arrived) == 200)
        assert two.server.counters()["post_faults"] == 199
        assert two.server.counters()["faults"] == 0
        assert await two.client.put(two.peer, header_of("a", b"y"), [b"y"]) == b"thanks for a"


# -- ways -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keys", [False, True], ids=["plain", "curve"])
async def test_posts_pass_an_emulated_link(keys: bool) -> None:
    proxy = Proxy(OneLink(Conditions(rtt_ms=5)).connection, VirtualTimer())
    async with TaskGroup() as tasks:
        running = tasks.create_task(proxy.run())
        async with pair(keys, ways=Ways("direct", emulated=Emulated(proxy.address, proxy.secret))) as two:
            sent = [os.urandom(5000) for _ in range(100)]
            assert all(two.client.post(two.peer, [content]) for content in sent)
            assert await two.arrived(100) == sent
            assert proxy._relay.moved.up_nbytes > 500_000
        running.cancel()


async def test_posts_take_the_detour_to_a_peer_that_cannot_be_reached(tmp_path: Path) -> None:
    async with asyncio.timeout(100), bench(tmp_path) as pool:
        gate, serving = await pool.node("a"), await pool.node("b")

        def named(peer: Peer, why: str) -> str:
            return f"tcp://{gate.secret}.{why}.{pipe_name(peer.endpoint, peer.public_key or b'')}:1"

        async with pair(keys=True, ways=Ways("grpc", Detour(gate.proxy, named))) as two:
            port = int(two.server.endpoint.rpartition(":")[2])
            name = pipe_name(two.peer.endpoint, two.peer.public_key or b"")
            serving._own = {name: ("127.0.0.1", port)}.get
            pool.exchange.places[name] = Place("b", "stage", two.peer.endpoint)
            sent = [os.urandom(5000) for _ in range(100)]
            assert all(two.client.post(two.peer, [content]) for content in sent)
            assert await two.arrived(100) == sent
            assert two.client.counters()["connections_relayed"] == 1


# -- garbage ----------------------------------------------------------------------------------------------------------


async def test_posts_that_lie_are_refused_and_the_ones_behind_them_arrive() -> None:
    async with pair(server_limits=replace(PATIENT, post_nbytes=4096)) as two:
        context = zmq.asyncio.Context()
        raw = context.socket(zmq.DEALER)
        raw.linger = 0
        raw.connect(two.server.endpoint)
        right = xxhash.xxh3_64_intdigest(b"content")
        lies = [
            [Frame(Type.POST, 0, length=7, check=right).encode()],
            [Frame(Type.POST, 0, length=7, check=right).encode(), b"content"],
            [Frame(Type.POST, 0, length=7, check=right ^ 1).encode() + b"content"],
            [Frame(Type.POST, 0, length=7, check=right).encode() + b"contenT"],
            [Frame(Type.POST, 0, length=6, check=right).encode() + b"content"],
            [Frame(Type.POST, 0, length=2**64 - 1, check=right).encode() + b"content"],
            [
                Frame(Type.POST, 0, length=5000, check=xxhash.xxh3_64_intdigest(b"x" * 5000)).encode() + b"x" * 5000,
                b"y",
            ],
            [Frame(Type.POST, 0, length=7, check=right).encode()[:-1] + b"content"],
            [Frame(Type.CREDIT, 0, length=7, check=right).encode() + b"content"],
        ]
        for lie in lies:
            await raw.send_multipart(lie)
            await raw.send_multipart([Frame(Type.POST, 9, length=7, check=right).encode() + b"content", b"and more"])
        assert await two.arrived(len(lies)) == [b"content"] * len(lies)
        assert two.server.counters()["frames_refused"] == len(lies)
        assert two.server.counters()["faults"] == 0
        context.destroy(0)


async def test_a_peer_that_we_called_cannot_post_over_our_connection() -> None:
    """It would have no key of its own there."""
    box = Box()
    context = zmq.asyncio.Context()
    router = context.socket(zmq.ROUTER)
    router.linger = 0
    port = router.bind_to_random_port("tcp://127.0.0.1")
    async with await TensorPlane.open("127.0.0.1", identity=None, handler=Shelf(), posted=box.posted) as plane:
        call = asyncio.create_task(plane.put(Peer(f"tcp://127.0.0.1:{port}"), header_of("a", b"y"), [b"y"]))
        route, *_ = await router.recv_multipart()
        check = xxhash.xxh3_64_intdigest(b"content")
        await router.send_multipart([route, Frame(Type.POST, 0, length=7, check=check).encode() + b"content"])
        await until_async(lambda: plane.counters()["frames_unknown"] == 1)
        assert not box.posts
        call.cancel()
    context.destroy(0)


async def test_what_a_peer_sends_back_to_a_poster_is_not_kept() -> None:
    context = zmq.asyncio.Context()
    router = context.socket(zmq.ROUTER)
    router.linger = 0
    port = router.bind_to_random_port("tcp://127.0.0.1")
    peer = Peer(f"tcp://127.0.0.1:{port}")
    async with pair() as two:
        two.client.post(peer, [b"x"])
        route, *_ = await router.recv_multipart()
        await router.send_multipart([route, bytes(1_000_000)])
        await until_async(lambda: two.lost == [peer], what="the end of that connection")
        two.client.post(two.peer, [b"y"])
        assert await two.arrived(1) == [b"y"]
    context.destroy(0)
