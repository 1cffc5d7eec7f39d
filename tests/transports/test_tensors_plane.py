"""Two planes in one process: objects arrive, refusals are refusals, keys decide who may speak, nothing hangs."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable

import pytest
from tests.transports.tensors_setup import FAST, Shelf, ask_for, header_of, peer_of
from tests.waiting import until_async

from medley.protocol.errors import Unavailable, UserError
from medley.transports.tensors import Accept, Curve, Header, Kind, Limits, Peer, Refuse, Refused, TensorPlane, digest_of

ODD = os.urandom(3_000_017)


class Pair:
    """A server and a client plane, each with its shelf; with CURVE when `keys` are wanted."""

    def __init__(self, keys: bool, limits: Limits = FAST, server_limits: Limits | None = None) -> None:
        self.ours, self.theirs = Shelf(), Shelf()
        self.client_id = Curve.generate() if keys else None
        self.server_id = Curve.generate() if keys else None
        self.admitted = {self.client_id.public_key} if self.client_id else set()
        self.limits, self.server_limits = limits, server_limits or limits

    async def __aenter__(self) -> Pair:
        self.server = await TensorPlane.open(
            "127.0.0.1",
            identity=self.server_id,
            limits=self.server_limits,
            allow=lambda key: key in self.admitted,
            handler=self.theirs,
        )
        self.client = await TensorPlane.open(
            "127.0.0.1", identity=self.client_id, limits=self.limits, handler=self.ours
        )
        self.peer = peer_of(self.server)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.client.close()
        await self.server.close()

    async def put(self, name: str, *buffers: bytes) -> bytes:
        return await self.client.put(self.peer, header_of(name, *buffers), buffers)


async def ends_with(call: Awaitable[object], error: type[Exception], reason: str) -> None:
    with pytest.raises(error, match=reason):
        await call


@pytest.mark.parametrize("keys", [False, True], ids=["plain", "curve"])
async def test_an_object_goes_there_and_back(keys: bool) -> None:
    async with Pair(keys) as pair:
        assert await pair.put("a", ODD[:1_000_003], ODD[1_000_003:]) == b"thanks for a"
        assert pair.theirs.arrived["a"] == ODD
        pair.theirs.stock["b"] = [ODD[:100], ODD[100:]]
        assert await pair.client.get(pair.peer, ask_for("b"), bytearray) == ODD
        own = bytearray(len(ODD))
        assert (await pair.client.get(pair.peer, ask_for("b"), own)).nbytes == len(ODD)
        assert own == ODD
        await until_async(lambda: pair.theirs.calls["released"] == 2)
        assert set(pair.theirs.keys) == {pair.client_id.public_key if pair.client_id else b""}


async def test_nothing_at_all_is_an_object_too() -> None:
    async with Pair(keys=False) as pair:
        pair.theirs.stock["b"] = []
        assert await pair.put("a") == b"thanks for a"
        assert (await pair.client.get(pair.peer, ask_for("b"), bytearray)).nbytes == 0


async def test_many_transfers_share_a_connection() -> None:
    async with Pair(keys=False) as pair:
        pair.theirs.stock["b"] = [ODD]
        async with asyncio.TaskGroup() as group:
            puts = [group.create_task(pair.put(f"p{n}", ODD[n:])) for n in range(8)]
            gets = [group.create_task(pair.client.get(pair.peer, ask_for("b"), bytearray)) for _ in range(8)]
        assert {put.result() for put in puts} == {b"thanks for p%d" % n for n in range(8)}
        assert all(get.result() == ODD for get in gets)
        assert all(pair.theirs.arrived[f"p{n}"] == ODD[n:] for n in range(8))


async def test_progress_grows_to_the_whole() -> None:
    async with Pair(keys=False) as pair:
        seen: list[tuple[int, int]] = []
        await pair.client.put(pair.peer, header_of("a", ODD), [ODD], lambda *step: seen.append(step))
        assert seen == sorted(seen)
        assert seen[-1] == (len(ODD), len(ODD))


async def test_what_was_received_is_answered_without_its_bytes() -> None:
    async with Pair(keys=False) as pair:
        await pair.put("a", ODD)
        before = pair.client.counters()["bytes_sent"]
        assert await pair.put("a", ODD) == b"already"
        assert pair.client.counters()["bytes_sent"] == before


async def test_a_refusal_carries_its_reason() -> None:
    async with Pair(keys=False) as pair:
        pair.theirs.refusal = Refuse("too stale: version 3 is gone")
        with pytest.raises(Refused, match="version 3 is gone"):
            await pair.put("a", ODD)
        with pytest.raises(Refused, match="there is no 'x' here"):
            await pair.client.get(pair.peer, ask_for("x"), bytearray)


async def test_a_busy_peer_is_asked_again() -> None:
    async with Pair(keys=False) as pair:
        pair.theirs.refusal = Refuse("later", busy=True)
        async with asyncio.TaskGroup() as group:
            put = group.create_task(pair.put("a", ODD))
            await until_async(lambda: pair.theirs.calls["offer"] >= 1)
            pair.theirs.refusal = None
        assert put.result() == b"thanks for a"


async def test_a_handler_that_fails_refuses_and_the_plane_lives_on(caplog: pytest.LogCaptureFixture) -> None:
    async with Pair(keys=False) as pair:
        pair.theirs.arrived = None  # type: ignore[assignment]
        with pytest.raises(Refused, match="failed"):
            await pair.put("a", ODD)
        pair.theirs.arrived = {}
        assert await pair.put("a", ODD) == b"thanks for a"
    assert "the tensor handler failed" in caplog.text


def a_full_disk(*_: int) -> None:
    raise OSError(28, "No space left on device")


def a_mistake_of_ours(*_: int) -> None:
    raise ZeroDivisionError


async def test_a_receiver_that_cannot_store_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    async with Pair(keys=False) as pair:
        with monkeypatch.context() as patch:
            patch.setattr(pair.theirs, "offer", offering(a_full_disk))
            with pytest.raises(Refused, match="cannot store"):
                await pair.put("a", ODD)
        assert await pair.put("b", ODD) == b"thanks for b"


async def test_a_fault_of_one_turn_does_not_end_the_plane(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with Pair(keys=False, limits=Limits(floor_s=0.3, slack_s=0.1), server_limits=FAST) as pair:
        with monkeypatch.context() as patch:
            patch.setattr(pair.theirs, "offer", offering(a_mistake_of_ours))
            with pytest.raises(Unavailable):
                await pair.put("a", ODD)
        assert await pair.put("b", ODD) == b"thanks for b"
        assert pair.server.counters()["faults"] >= 1
    assert "ZeroDivisionError" in caplog.text


def offering(journal: Callable[[int, int, int], None]) -> Callable[[bytes, Header], Awaitable[Accept]]:
    async def offer(peer_key: bytes, header: Header) -> Accept:
        return Accept(bytearray(header.nbytes), journal=journal)

    return offer


async def test_sizes_are_checked_before_anything_is_allocated() -> None:
    small = Limits(object_nbytes=1000)
    async with Pair(keys=False, server_limits=small) as pair:
        with pytest.raises(Refused, match="more than the 1000"):
            await pair.put("a", ODD)
        assert pair.theirs.calls["offer"] == 0
    async with Pair(keys=False, limits=small, server_limits=FAST) as pair:
        pair.theirs.stock["b"] = [ODD]
        made: list[int] = []
        with pytest.raises(Refused, match="more than the 1000"):
            await pair.client.get(pair.peer, ask_for("b"), lambda n: bytearray(made.append(n) or n))
        assert made == []


async def test_a_buffer_that_does_not_fit_is_the_callers_error() -> None:
    async with Pair(keys=False) as pair:
        pair.theirs.stock["b"] = [ODD]
        with pytest.raises(ValueError, match="writable"):
            await pair.client.get(pair.peer, ask_for("b"), bytearray(3))
        with pytest.raises(ValueError, match="the buffers have 3"):
            await pair.client.put(pair.peer, header_of("a", ODD), [b"abc"])


@pytest.mark.parametrize("way", ["put", "get"])
async def test_nobody_there_is_unavailable(way: str) -> None:
    async with await TensorPlane.open("127.0.0.1", identity=None, handler=Shelf()) as gone:
        peer = peer_of(gone)
    quick = Limits(floor_s=0.3, slack_s=0.1)
    async with await TensorPlane.open("127.0.0.1", identity=None, limits=quick, handler=Shelf()) as plane:
        with pytest.raises(Unavailable, match="no progress"):
            if way == "put":
                await plane.put(peer, header_of("a", b"x"), [b"x"])
            else:
                await plane.get(peer, ask_for("a"), bytearray)


async def test_a_slow_handler_is_waited_for_but_not_for_ever() -> None:
    limits = Limits(floor_s=0.5, slack_s=0.1, wait_s=1.5)
    async with Pair(keys=False, limits=limits, server_limits=FAST) as pair:
        pair.theirs.gate = asyncio.Event()
        with pytest.raises(Unavailable, match="kept waiting"):
            await pair.put("a", ODD)
        pair.theirs.gate.set()
        await until_async(lambda: "a" in pair.theirs.arrived)


async def test_a_handler_that_never_answers_is_a_refusal_in_the_end(caplog: pytest.LogCaptureFixture) -> None:
    async with Pair(keys=False, server_limits=Limits(wait_s=0.3)) as pair:
        pair.theirs.gate = asyncio.Event()
        with pytest.raises(Refused, match="failed to take"):
            await pair.put("a", ODD)
    assert "TimeoutError" in caplog.text


async def test_an_admission_that_fails_admits_nobody_and_blocks_nobody(caplog: pytest.LogCaptureFixture) -> None:
    async with Pair(keys=True) as pair:
        admitted, pair.admitted = pair.admitted, None  # type: ignore[assignment]
        async with asyncio.TaskGroup() as group:
            put = group.create_task(pair.put("a", ODD))
            await until_async(lambda: pair.server.counters()["handshakes_refused"] >= 1)
            pair.admitted = admitted
        assert put.result() == b"thanks for a"
    assert "a turn of the tensor plane failed" in caplog.text


async def test_a_key_that_is_not_admitted_is_refused_until_it_is() -> None:
    async with Pair(keys=True) as pair:
        pair.admitted.clear()
        async with asyncio.TaskGroup() as group:
            put = group.create_task(pair.put("a", ODD))
            await until_async(lambda: pair.server.counters()["handshakes_refused"] >= 1)
            assert not put.done()
            assert pair.client_id is not None
            pair.admitted.add(pair.client_id.public_key)
        assert put.result() == b"thanks for a"


async def test_a_plain_connection_or_a_wrong_server_key_gets_nowhere() -> None:
    quick = Limits(floor_s=0.5, slack_s=0.1)
    async with Pair(keys=True, limits=quick) as pair:
        async with await TensorPlane.open("127.0.0.1", identity=None, limits=quick, handler=Shelf()) as plain:
            with pytest.raises(Unavailable):
                await plain.put(Peer(pair.server.endpoint), header_of("a", b"x"), [b"x"])
        wrong = Peer(pair.server.endpoint, Curve.generate().public_key)
        with pytest.raises(Unavailable):
            await pair.client.put(wrong, header_of("a", b"x"), [b"x"])
        assert pair.theirs.calls == {}


async def test_a_revoked_key_is_cut_off_although_its_connection_stands() -> None:
    async with Pair(keys=True) as pair:
        await pair.put("a", ODD)
        assert pair.client_id is not None
        pair.server.revoke(pair.client_id.public_key)
        with pytest.raises(Refused, match="revoked"):
            await pair.put("b", ODD)
        # counted after the refusal has left, by a thread that need not run on at once
        await until_async(lambda: pair.server.counters()["frames_refused"] >= 1)
        assert "b" not in pair.theirs.arrived


async def test_revoking_ends_what_is_under_way() -> None:
    async with Pair(keys=True) as pair:
        pair.theirs.gate = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            group.create_task(ends_with(pair.put("a", ODD), Refused, "revoked"))
            await until_async(lambda: pair.theirs.calls["received"] == 1)
            assert pair.client_id is not None
            pair.server.revoke(pair.client_id.public_key)
        pair.client.revoke(pair.peer.public_key or b"")
        with pytest.raises(Refused, match="revoked"):
            await pair.put("c", ODD)


async def test_a_cancelled_put_leaves_the_plane_usable() -> None:
    async with Pair(keys=False) as pair:
        pair.theirs.gate = asyncio.Event()
        put = asyncio.ensure_future(pair.put("a", ODD))
        await until_async(lambda: pair.theirs.calls["received"] == 1)
        put.cancel()
        with pytest.raises(asyncio.CancelledError):
            await put
        pair.theirs.gate.set()
        assert await pair.put("b", ODD) == b"thanks for b"


async def test_closing_ends_calls_and_gives_buffers_back() -> None:
    async with Pair(keys=False) as pair:
        pair.theirs.gate = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            group.create_task(ends_with(pair.put("a", ODD), Unavailable, "closed"))
            await until_async(lambda: pair.theirs.calls["received"] == 1)
            await pair.client.close()
        with pytest.raises(RuntimeError, match="closed"):
            await pair.put("b", ODD)
        await pair.client.close()


async def test_an_open_address_needs_an_identity() -> None:
    with pytest.raises(UserError, match="CURVE identity"):
        await TensorPlane.open("0.0.0.0", identity=None, handler=Shelf())
    async with await TensorPlane.open("127.0.0.1", identity=Curve.generate(), handler=Shelf()) as plane:
        with pytest.raises(UserError, match="whose key it knows"):
            await plane.put(Peer("tcp://127.0.0.1:9"), header_of("a"), [])


async def test_a_taken_port_is_said_plainly() -> None:
    async with await TensorPlane.open("127.0.0.1", identity=None, handler=Shelf()) as plane:
        port = int(plane.endpoint.rpartition(":")[2])
        with pytest.raises(UserError, match=f"cannot listen on 127.0.0.1:{port}"):
            await TensorPlane.open("127.0.0.1", port, identity=None, handler=Shelf())


def test_a_secret_never_shows_in_a_repr() -> None:
    curve = Curve.generate()
    assert repr(curve.secret_key) not in repr(curve)
    assert Header(kind=Kind.UPDATE, run="r", digest=digest_of([])).digest
