"""A peer that speaks badly: every frame is counted and refused, the plane never falls over, never takes wrong bytes."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import xxhash
import zmq
import zmq.asyncio
from tests.transports.tensors_setup import FAST, Shelf, ask_for, header_of, peer_of
from tests.waiting import until_async

from medley.transports.tensors import Curve, Limits, Peer, TensorPlane
from medley.transports.tensors.wire import Flag, Frame, Type, decode_frame, encode_header

DATA = bytes(range(256)) * 40


class Raw:
    """A DEALER that writes frames by hand."""

    def __init__(self, endpoint: str, identity: Curve | None = None, server_key: bytes = b"") -> None:
        self.context = zmq.asyncio.Context()
        self.socket = self.context.socket(zmq.DEALER)
        self.socket.linger = 0
        if identity is not None:
            identity.apply_as_client(self.socket, server_key)
        self.socket.connect(endpoint)

    async def send(self, frame: Frame, *payload: bytes) -> None:
        await self.socket.send_multipart([frame.encode(), *payload])

    async def chunk(self, offset: int, part: bytes, *, length: int | None = None, check: int | None = None) -> None:
        right = xxhash.xxh3_64_intdigest(part)
        frame = Frame(
            Type.CHUNK,
            1,
            offset=offset,
            length=len(part) if length is None else length,
            check=right if check is None else check,
        )
        await self.send(frame, part)

    async def hear(self, wanted: Type) -> tuple[Frame, bytes]:
        """The next frame of a type, passing over others."""
        async with asyncio.timeout(10):
            while True:
                raw, *body = await self.socket.recv_multipart()
                if (frame := decode_frame(raw)).type is wanted:
                    return frame, b"".join(body)


@asynccontextmanager
async def raws(count: int, endpoint: str, identity: Curve | None = None, key: bytes = b"") -> AsyncIterator[list[Raw]]:
    made = [Raw(endpoint, identity, key) for _ in range(count)]
    try:
        yield made
    finally:
        for raw in made:
            raw.context.destroy(0)


class Scene:
    def __init__(self, plane: TensorPlane, shelf: Shelf, raw: Raw) -> None:
        self.plane, self.shelf, self.raw = plane, shelf, raw

    async def still_works(self) -> None:
        async with await TensorPlane.open("127.0.0.1", identity=None, limits=FAST, handler=Shelf()) as other:
            await other.put(peer_of(self.plane), header_of("after", DATA), [DATA])
        assert self.shelf.arrived["after"] == DATA

    async def counted(self, name: str, times: int = 1) -> None:
        await until_async(lambda: self.plane.counters()[name] >= times, what=f"{times} {name}")


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    shelf = Shelf()
    limits = Limits(chunk_nbytes=2048, chunk_nbytes_max=4096, window_chunks=2, resends=2)
    async with await TensorPlane.open("127.0.0.1", identity=None, limits=limits, handler=shelf) as plane:
        raw = Raw(plane.endpoint)
        yield Scene(plane, shelf, raw)
        raw.context.destroy(0)


async def test_noise_in_any_number_of_frames(scene: Scene) -> None:
    dice = random.Random(7)
    for _ in range(100):
        count = dice.randint(1, 5)
        await scene.raw.socket.send_multipart(
            [dice.randbytes(dice.choice([0, 1, 63, 64, 65, 500])) for _ in range(count)]
        )
    await scene.counted("frames_refused", 100)
    await scene.still_works()


async def test_every_type_out_of_the_blue(scene: Scene) -> None:
    for type_ in Type:
        await scene.raw.send(Frame(type_, 7, Flag.REWIND, 2**64 - 1, 2**64 - 1, 2**64 - 1, 1), b"what")
        await scene.raw.send(Frame(type_, 8))
    await scene.counted("frames_refused", 4)
    await scene.counted("frames_unknown", 14)
    await scene.still_works()


async def test_bytes_that_are_not_even_zeromq(scene: Scene) -> None:
    host, port = scene.plane.endpoint.removeprefix("tcp://").split(":")
    for noise in (b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 5000, b""):
        with socket.create_connection((host, int(port))) as plain:
            plain.sendall(noise)
    await scene.still_works()


async def test_a_message_over_the_limit_closes_the_connection_only(scene: Scene) -> None:
    await scene.raw.send(Frame(Type.CHUNK, 1, length=10), b"x" * (1 << 20))
    await scene.still_works()


async def test_a_wrong_checksum_is_asked_for_again(scene: Scene) -> None:
    await scene.raw.send(Frame(Type.OFFER, 1), encode_header(header_of("a", DATA)))
    await scene.raw.hear(Type.ACCEPT)
    await scene.raw.chunk(0, DATA[:2000], check=1)
    credit, _ = await scene.raw.hear(Type.CREDIT)
    assert (credit.offset, credit.flags) == (0, Flag.REWIND)
    for offset in range(0, len(DATA), 2000):
        await scene.raw.chunk(offset, DATA[offset : offset + 2000])
        if offset + 2000 < len(DATA):
            credit, _ = await scene.raw.hear(Type.CREDIT)
            assert credit.offset == offset + 2000
    assert (await scene.raw.hear(Type.REPLY))[1] == b"thanks for a"
    assert scene.shelf.arrived["a"] == DATA


async def test_chunks_late_early_long_or_beyond_the_credit_change_nothing(scene: Scene) -> None:
    await scene.raw.send(Frame(Type.OFFER, 1), encode_header(header_of("a", DATA)))
    await scene.raw.hear(Type.ACCEPT)
    await scene.raw.chunk(0, DATA[:2000])
    assert (await scene.raw.hear(Type.CREDIT))[0].offset == 2000
    await scene.raw.chunk(0, b"y" * 2000)
    await scene.raw.chunk(4000, b"y" * 2000)
    await scene.raw.chunk(2000, b"y" * 10, length=2**64 - 1)
    await scene.raw.chunk(2000, b"y" * 10, length=0)
    await scene.raw.send(Frame(Type.CHUNK, 1, offset=2000, length=100))
    await scene.counted("chunks_refused", 4)
    for offset in range(2000, len(DATA), 2000):
        await scene.raw.chunk(offset, DATA[offset : offset + 2000])
        if offset + 2000 < len(DATA):
            await scene.raw.hear(Type.CREDIT)
    await scene.raw.hear(Type.REPLY)
    assert scene.shelf.arrived["a"] == DATA


@pytest.mark.parametrize("claimed", [1999, 2001])
async def test_a_lying_length_runs_out_of_patience(scene: Scene, claimed: int) -> None:
    await scene.raw.send(Frame(Type.OFFER, 1), encode_header(header_of("a", DATA)))
    await scene.raw.hear(Type.ACCEPT)
    for _ in range(3):
        await scene.raw.chunk(0, DATA[:2000], length=claimed)
    assert (await scene.raw.hear(Type.REFUSE))[1] == b"too many damaged chunks"
    await until_async(lambda: scene.shelf.calls["dropped"] == 1)
    await scene.still_works()


async def test_credit_nonsense_from_an_asker_is_harmless(scene: Scene) -> None:
    scene.shelf.stock["b"] = [DATA]
    await scene.raw.send(Frame(Type.ASK, 1), encode_header(ask_for("b")))
    accept, _ = await scene.raw.hear(Type.ACCEPT)
    assert accept.total == len(DATA)
    await scene.raw.send(Frame(Type.CREDIT, 1, offset=2**63, total=2**64 - 1))
    await scene.raw.send(Frame(Type.CREDIT, 1, offset=len(DATA) - 5, total=2**64 - 1))
    assert (await scene.raw.hear(Type.CHUNK))[1] == DATA[-5:]
    await scene.raw.send(Frame(Type.DONE, 1))
    await until_async(lambda: scene.shelf.calls["released"] == 1)


async def test_who_asks_and_then_says_nothing_holds_nothing_for_long() -> None:
    shelf = Shelf(stock={"b": [DATA]})
    limits = Limits(silence_s=1.0)
    async with await TensorPlane.open("127.0.0.1", identity=None, limits=limits, handler=shelf) as plane:
        raw = Raw(plane.endpoint)
        await raw.send(Frame(Type.ASK, 1), encode_header(ask_for("b")))
        await raw.hear(Type.ACCEPT)
        assert (await raw.hear(Type.REFUSE))[1] == b"the asker fell silent"
        await until_async(lambda: shelf.calls["released"] == 1)
        raw.context.destroy(0)


async def test_too_many_open_transfers_are_told_to_wait(scene: Scene) -> None:
    scene.shelf.gate = asyncio.Event()
    for number in range(1, 80):
        await scene.raw.send(Frame(Type.OFFER, number), encode_header(header_of(f"n{number}", b"xx")))
    refused, why = await scene.raw.hear(Type.REFUSE)
    assert refused.flags == Flag.BUSY
    assert why == b"too many open transfers"


async def test_a_peer_opens_no_more_over_several_connections() -> None:
    shelf, ours, theirs = Shelf(stock={"b": [DATA]}), Curve.generate(), Curve.generate()
    limits, allow = Limits(transfers_per_peer=2), lambda key: key == theirs.public_key
    opening = TensorPlane.open("127.0.0.1", identity=ours, limits=limits, allow=allow, handler=shelf)
    async with await opening as plane, raws(2, plane.endpoint, theirs, ours.public_key) as (first, second):
        for number in (1, 2):
            await first.send(Frame(Type.ASK, number), encode_header(ask_for("b")))
            await first.hear(Type.ACCEPT)
        await second.send(Frame(Type.ASK, 1), encode_header(ask_for("b")))
        assert (await second.hear(Type.REFUSE))[1] == b"too many open transfers"


async def test_all_peers_together_hold_no_more_open_than_allowed() -> None:
    shelf, limits = Shelf(stock={"b": [DATA]}), Limits(transfers=2)
    opening = TensorPlane.open("127.0.0.1", identity=None, limits=limits, handler=shelf)
    async with await opening as plane, raws(3, plane.endpoint) as (*some, one_too_many):
        for raw in some:
            await raw.send(Frame(Type.ASK, 1), encode_header(ask_for("b")))
            await raw.hear(Type.ACCEPT)
        await one_too_many.send(Frame(Type.ASK, 1), encode_header(ask_for("b")))
        assert (await one_too_many.hear(Type.REFUSE))[1] == b"too many open transfers"


async def test_a_connection_too_many_holds_nothing_open() -> None:
    """It is not among those that are watched, so what it asked for would never be let go."""
    shelf, limits = Shelf(stock={"b": [DATA]}), Limits(transfers=1)
    opening = TensorPlane.open("127.0.0.1", identity=None, limits=limits, handler=shelf)
    async with await opening as plane, raws(5, plane.endpoint) as (*some, one_too_many):
        for raw in some:
            await raw.send(Frame(Type.ASK, 1), encode_header(ask_for("no such")))
            await raw.hear(Type.REFUSE)
        await one_too_many.send(Frame(Type.ASK, 2), encode_header(ask_for("b")))
        assert (await one_too_many.hear(Type.REFUSE))[1] == b"too many connections"


async def test_what_a_vanished_peer_left_is_dropped_when_there_is_too_much_of_it() -> None:
    shelf = Shelf()
    limits = Limits(parked=1, chunk_nbytes=2048, chunk_nbytes_max=4096)
    async with await TensorPlane.open("127.0.0.1", identity=None, limits=limits, handler=shelf) as plane:
        for name in ("a", "b", "c"):
            raw = Raw(plane.endpoint)
            await raw.send(Frame(Type.OFFER, 1), encode_header(header_of(name, DATA)))
            await raw.hear(Type.ACCEPT)
            await raw.chunk(0, DATA[:2000])
            await raw.hear(Type.CREDIT)
            await raw.send(Frame(Type.REFUSE, 1), b"given up")
            await raw.send(Frame(Type.OFFER, 2), encode_header(header_of("sync " + name, b"")))
            await raw.hear(Type.REPLY)
            raw.context.destroy(0)
        await until_async(lambda: shelf.calls["dropped"] == 2)
        assert plane.counters()["parked_dropped"] == 2


async def test_there_is_no_room_beyond_the_limit_for_all_objects_together() -> None:
    shelf = Shelf(gate=asyncio.Event())
    limits = Limits(inbound_nbytes=15_000)
    async with await TensorPlane.open("127.0.0.1", identity=None, limits=limits, handler=shelf) as plane:
        raw = Raw(plane.endpoint)
        await raw.send(Frame(Type.OFFER, 1), encode_header(header_of("a", DATA)))
        await raw.hear(Type.ACCEPT)
        await raw.send(Frame(Type.OFFER, 2), encode_header(header_of("b", DATA)))
        refused, why = await raw.hear(Type.REFUSE)
        assert (refused.transfer, refused.flags, why) == (2, Flag.BUSY, b"no room for another object now")
        raw.context.destroy(0)


async def test_a_source_that_says_a_size_again_and_again_costs_one_buffer() -> None:
    """Each buffer is as large as the source says it is, up to the largest object that is taken."""
    made: list[int] = []

    def buffer(nbytes: int) -> bytearray:
        made.append(nbytes)
        return bytearray(nbytes)

    context = zmq.asyncio.Context()
    source = context.socket(zmq.ROUTER)
    source.linger = 0
    try:
        peer = Peer(f"tcp://127.0.0.1:{source.bind_to_random_port('tcp://127.0.0.1')}")
        async with await TensorPlane.open("127.0.0.1", identity=None, limits=FAST, handler=Shelf()) as plane:
            getting = asyncio.create_task(plane.get(peer, ask_for("b"), buffer))
            route, asked, _ = await source.recv_multipart()
            transfer, check = decode_frame(asked).transfer, xxhash.xxh3_64_intdigest(DATA)
            for _ in range(50):
                await source.send_multipart([route, Frame(Type.ACCEPT, transfer, total=len(DATA)).encode()])
            assert decode_frame((await source.recv_multipart())[1]).type is Type.CREDIT
            chunk = Frame(Type.CHUNK, transfer, length=len(DATA), check=check)
            await source.send_multipart([route, chunk.encode(), DATA])
            assert bytes(await getting) == DATA
    finally:
        context.destroy(0)
    assert made == [len(DATA)]
