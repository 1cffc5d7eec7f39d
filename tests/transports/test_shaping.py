"""Shaped bytes and messages in virtual time: all of them, in order, when the link would have brought them."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace

import pytest
from tests.transports.shaping_setup import OneLink, Sink, VirtualTimer, virtually

from medley.concurrency import TaskGroup
from medley.protocol.conditions import (
    CLASSES,
    MSS_NBYTES,
    PACKET_NBYTES,
    PRESETS,
    Conditions,
    TrafficClass,
    goodput_bytes_per_s,
)
from medley.transports.shaping import ControlLink, Front, Limits, Moved, Proxy
from medley.transports.shaping.control import SilentLink
from medley.transports.shaping.pipe import Pipe
from medley.transports.tensors.contract import Limits as TensorLimits
from medley.transports.tensors.pace import Pace

CLEAN = Conditions(rtt_ms=100)
LIMITS = Limits()
SOCKETS_S = 0.01


async def carried(link: OneLink, content: bytes, sinks: int = 1, limits: Limits = LIMITS) -> list[Sink]:
    found = [Sink() for _ in range(sinks)]
    async with TaskGroup() as tasks:
        for sink in found:
            reader = asyncio.StreamReader()
            reader.feed_data(content)
            reader.feed_eof()
            pipe = Pipe(link.connection()[0], VirtualTimer(), limits, lambda nbytes: None)
            tasks.create_task(pipe.run(reader, sink))  # type: ignore[arg-type]
    return found


def test_a_small_message_arrives_after_half_a_round_trip() -> None:
    (sink,) = virtually(carried(OneLink(CLEAN), b"hello"))
    assert sink.content == b"hello"
    assert sink.arrived[0][0] == pytest.approx(0.05)


@pytest.mark.parametrize("name", ["cellular", "degraded", "brownout", "satellite"])
def test_every_byte_arrives_once_in_order_and_late(name: str) -> None:
    content = random.Random(name).randbytes(200_000)
    (sink,) = virtually(carried(OneLink(PRESETS[name]), content))
    assert sink.content == content
    assert sink.ended_s > len(content) / PRESETS[name].up_bytes_per_s


def test_the_same_seed_brings_the_same_bytes_at_the_same_moments() -> None:
    one, same, other = (
        virtually(carried(OneLink(PRESETS["cellular"], seed), bytes(100_000)))[0].arrived for seed in (1, 1, 2)
    )
    assert one == same
    assert one != other


def test_connections_share_the_bandwidth_of_their_machine() -> None:
    slow = replace(CLEAN, up_bytes_per_s=100_000.0)
    nbytes = 500_000
    sinks = virtually(carried(OneLink(slow), bytes(nbytes), sinks=2))
    expected_s = 2 * nbytes / 100_000 * PACKET_NBYTES / MSS_NBYTES
    assert max(sink.ended_s for sink in sinks) == pytest.approx(expected_s, rel=0.1)


def test_second_copies_cost_bandwidth_and_nothing_else() -> None:
    slow = replace(CLEAN, up_bytes_per_s=100_000.0)
    (once,) = virtually(carried(OneLink(slow), bytes(500_000)))
    (twice,) = virtually(carried(OneLink(replace(slow, duplication=0.5)), bytes(500_000)))
    assert twice.content == once.content
    assert twice.ended_s / once.ended_s == pytest.approx(1.5, rel=0.05)


def test_a_slow_link_slows_its_sender_and_holds_only_so_much() -> None:
    async def held() -> int:
        limits = Limits(waiting_nbytes=64 * 1024, piece_nbytes=16 * 1024)
        link = OneLink(CLEAN)
        link.up.cut = True
        reader = asyncio.StreamReader(limit=16 * 1024)
        pipe = Pipe(link.connection()[0], VirtualTimer(), limits, lambda nbytes: None)
        fed = 0
        async with TaskGroup() as tasks:
            running = tasks.create_task(pipe.run(reader, Sink()))  # type: ignore[arg-type]
            for _ in range(100):
                reader.feed_data(bytes(16 * 1024))
                fed += 16 * 1024
                await VirtualTimer().sleep(0.01)
            running.cancel()
        return pipe._waiting.nbytes

    assert virtually(held()) <= 64 * 1024 + 16 * 1024


# -- the proxy --------------------------------------------------------------------------------------------------------


async def socks(proxy: Proxy, port: int, password: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, int]:
    host, _, at = proxy.address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(at))
    writer.write(b"\x05\x01\x02")
    assert await reader.readexactly(2) == b"\x05\x02"
    word = password.encode()
    writer.write(b"\x01" + bytes([len(word)]) + word + bytes([len(word)]) + word)
    if (await reader.readexactly(2))[1]:
        return reader, writer, -1
    writer.write(b"\x05\x01\x00\x01" + bytes((127, 0, 0, 1)) + port.to_bytes(2))
    return reader, writer, (await reader.readexactly(10))[1]


async def hang_up(writer: asyncio.StreamWriter) -> None:
    writer.close()
    await writer.wait_closed()


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
    writer.close()


async def through(proxy_link: OneLink, front_link: OneLink | None, content: bytes) -> tuple[bytes, float, Moved]:
    timer, moved = VirtualTimer(), Moved()
    proxy = Proxy(proxy_link.connection, timer, moved=moved)
    async with await asyncio.start_server(echo, "127.0.0.1", 0) as server, TaskGroup() as tasks:
        port = server.sockets[0].getsockname()[1]
        running = [tasks.create_task(proxy.run())]
        if front_link is not None:
            front = Front("127.0.0.1", 0, ("127.0.0.1", port), front_link.connection, timer)
            running.append(tasks.create_task(front.run()))
            port = front.port
        reader, writer, code = await socks(proxy, port, proxy.secret)
        assert code == 0
        began_s = asyncio.get_running_loop().time()
        writer.write(content)
        answer = await reader.readexactly(len(content))
        took_s = asyncio.get_running_loop().time() - began_s
        await hang_up(writer)
        for task in running:
            task.cancel()
    return answer, took_s, moved


def test_both_directions_of_what_an_engine_dials_are_shaped() -> None:
    answer, took_s, moved = virtually(through(OneLink(CLEAN), None, b"x" * 1000), SOCKETS_S)
    assert answer == b"x" * 1000
    assert took_s == pytest.approx(0.1, abs=0.005)
    assert (moved.up_nbytes, moved.down_nbytes) == (1000, 1000)


def test_two_machines_behind_links_are_as_far_apart_as_both_together() -> None:
    _, took_s, _ = virtually(through(OneLink(CLEAN), OneLink(Conditions(rtt_ms=60)), b"x"), SOCKETS_S)
    assert took_s >= 0.16


def test_a_connection_takes_a_handshake() -> None:
    async def opened() -> float:
        proxy = Proxy(OneLink(CLEAN).connection, VirtualTimer())
        async with await asyncio.start_server(echo, "127.0.0.1", 0) as server, TaskGroup() as tasks:
            running = tasks.create_task(proxy.run())
            writer = (await socks(proxy, server.sockets[0].getsockname()[1], proxy.secret))[1]
            opened_s = asyncio.get_running_loop().time()
            await hang_up(writer)
            running.cancel()
        return opened_s

    assert virtually(opened(), SOCKETS_S) == pytest.approx(0.1, abs=0.005)


@pytest.mark.parametrize(("secret", "cut", "code"), [("wrong", False, -1), ("", True, 0)])
def test_strangers_are_refused_and_silence_ends_the_connection(secret: str, cut: bool, code: int) -> None:
    async def asked() -> tuple[int, bytes]:
        link = OneLink(CLEAN)
        link.up.cut = link.down.cut = cut
        proxy = Proxy(link.connection, VirtualTimer())
        async with TaskGroup() as tasks:
            running = tasks.create_task(proxy.run())
            reader, writer, answer = await socks(proxy, 9, secret or proxy.secret)
            rest = await reader.read()
            await hang_up(writer)
            running.cancel()
        return answer, rest

    assert virtually(asked(), SOCKETS_S) == (code, b"")


def test_a_stranger_whom_the_engine_hung_up_on_keeps_no_place_at_its_front() -> None:
    """ZeroMQ ends within seconds who says nothing, and the front has places for so many connections only."""

    async def served() -> bytes:
        guests: list[asyncio.StreamWriter] = []

        async def engine(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            guests.append(writer)
            writer.write(b"hello" if len(guests) > 1 else b"")
            writer.close()

        async with await asyncio.start_server(engine, "127.0.0.1", 0) as server, TaskGroup() as tasks:
            target = ("127.0.0.1", server.sockets[0].getsockname()[1])
            front = Front("127.0.0.1", 0, target, OneLink(CLEAN).connection, VirtualTimer(), Limits(connections=1))
            running = tasks.create_task(front.run())
            reader, silent = await asyncio.open_connection("127.0.0.1", front.port)
            assert await reader.read() == b""
            said = b""
            for _ in range(100):
                await VirtualTimer().sleep(1.0)
                reader, writer = await asyncio.open_connection("127.0.0.1", front.port)
                said = said or await reader.read()
                await hang_up(writer)
            await hang_up(silent)
            running.cancel()
        return said

    assert virtually(served(), SOCKETS_S) == b"hello"


def test_a_front_that_is_stopped_ends_with_its_connections() -> None:
    async def stopped() -> bytes:
        async with await asyncio.start_server(echo, "127.0.0.1", 0) as server, TaskGroup() as tasks:
            target = ("127.0.0.1", server.sockets[0].getsockname()[1])
            front = Front("127.0.0.1", 0, target, OneLink(CLEAN).connection, VirtualTimer())
            running = tasks.create_task(front.run())
            reader, writer = await asyncio.open_connection("127.0.0.1", front.port)
            writer.write(b"hello")
            assert await reader.readexactly(5) == b"hello"
            running.cancel()
            await asyncio.wait([running])
            rest = await reader.read()
            await hang_up(writer)
        return rest

    assert virtually(stopped(), SOCKETS_S) == b""


# -- the control plane ------------------------------------------------------------------------------------------------


def control(conditions: dict[TrafficClass, Conditions], limits: Limits = LIMITS, phase_s: float = 0.0) -> ControlLink:
    links = {one: OneLink(conditions.get(one, Conditions()), phase_s=phase_s) for one in CLASSES}
    return ControlLink(lambda one: links[one].connection, VirtualTimer(), limits)


def test_a_class_meets_its_own_link_and_order_is_kept_between_classes() -> None:
    async def talked() -> list[tuple[str, float]]:
        lane = control({"heartbeat": CLEAN}).converse().up()
        await lane.put(b"task before", 100, "task")
        await lane.put(b"beat", 100, "heartbeat")
        await lane.put(b"task behind", 100, "task")
        loop = asyncio.get_running_loop()
        return [((await lane.take()).decode(), loop.time()) for _ in range(3)]

    words = virtually(talked())
    assert [word for word, _ in words] == ["task before", "beat", "task behind"]
    assert [at_s for _, at_s in words] == pytest.approx([0.0, 0.05, 0.05])


def test_a_stream_that_would_have_died_of_silence_is_ended() -> None:
    async def talked() -> None:
        lane = control({"task": Conditions(rtt_ms=100, up_s=1, down_s=3600)}, phase_s=1.0).converse().up()
        await lane.put(b"nobody hears", 100, "task")

    with pytest.raises(SilentLink):
        virtually(talked())


def test_a_control_stream_begins_after_the_handshakes() -> None:
    async def opened() -> float:
        await control({"task": CLEAN}).converse().open()
        return asyncio.get_running_loop().time()

    assert virtually(opened()) == pytest.approx(0.2)  # TCP, then TLS


def test_a_lane_holds_only_so_many_messages() -> None:
    async def talked() -> bool:
        lane = control({"task": CLEAN}, Limits(messages=4)).converse().up()
        async with TaskGroup() as tasks:

            async def say() -> None:
                for _ in range(5):
                    await lane.put(b"", 10, "task")

            saying = tasks.create_task(say())
            while lane._items.qsize() < 4:
                await VirtualTimer().sleep(0.001)
            full = not saying.done()
            await lane.take()
        return full

    assert virtually(talked())


@pytest.mark.parametrize("name", [name for name in PRESETS if name != "none"])
def test_the_first_chunk_over_any_preset_lands_before_the_tensor_plane_gives_up(name: str) -> None:
    """Otherwise nothing is ever acknowledged, nothing is learnt of the link, and the next attempt fails alike."""
    limits, pace = TensorLimits(), Pace()
    patience_s = pace.patience_s(pace.window_nbytes(limits.chunk_nbytes_max), limits.floor_s, limits.slack_s)
    assert pace.chunk_nbytes(limits.chunk_nbytes) / goodput_bytes_per_s(PRESETS[name]) < patience_s
