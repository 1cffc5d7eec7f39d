"""Pipes through the coordinator over real sockets: bytes intact, back-pressure, ends, and who is refused."""

from __future__ import annotations

import asyncio
import hashlib
import random
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import grpc.aio
import pytest
from tests.transports.shaping_setup import virtually
from tests.transports.tunnel_setup import NOW_NS, PATIENT, Bench, bench, dial, engine
from tests.waiting import until_async

from medley.protocol.errors import PeerError
from medley.transports.identity import Authority
from medley.transports.tunnel.contract import Place, Why, pipe_name
from medley.transports.tunnel.line import Line
from medley.transports.tunnel.pump import pump

DEADLINE_S = 90
MIB = 1024 * 1024


@pytest.fixture
async def pool(tmp_path: Path) -> AsyncIterator[Bench]:
    async with bench(tmp_path) as made, asyncio.timeout(DEADLINE_S):
        yield made


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()


class Silent:
    """A node that is called and does nothing."""

    def called(self, number: int, name: str) -> None:
        pass


async def converse(reader: Any, writer: Any, content: bytes) -> bytes:
    """Send while reading what comes back."""

    async def send() -> None:
        writer.write(content)
        await writer.drain()

    sending = asyncio.create_task(send())
    heard = await reader.readexactly(len(content))
    await sending
    writer.close()
    return bytes(heard)


async def test_many_pipes_at_once_keep_every_byte(pool: Bench) -> None:
    async with engine(echo) as where:
        await pool.node("b", shard=where)
        gate = await pool.node("a")
        contents = [random.Random(n).randbytes(MIB + n) for n in range(16)]

        async def one(content: bytes) -> bytes:
            reader, writer, reply = await dial(gate, "shard")
            assert reply == 0
            return await converse(reader, writer, content)

        heard = await asyncio.gather(*map(one, contents))
    assert [hashlib.sha256(h).digest() for h in heard] == [hashlib.sha256(c).digest() for c in contents]
    assert pool.exchange.told == [("a", "shard of b", Why.SILENT)]  # once, not sixteen times
    await until_async(lambda: not pool.relay.pairs(), what="the end of all pipes")


async def test_the_vault_is_dialled_by_the_coordinator(pool: Bench) -> None:
    async with engine(echo) as (host, port):
        gate = await pool.node("a")
        pool.exchange.places[pipe_name("vault", b"")] = Place("", "the vault", "vault", host, port)
        reader, writer, reply = await dial(gate, "vault", "asked")
        assert reply == 0
        assert pool.relay.pairs()[0].place.words == "the vault"
        assert await converse(reader, writer, b"artifact") == b"artifact"


async def test_an_engine_of_the_same_node_needs_no_coordinator(pool: Bench) -> None:
    async with engine(echo) as where:
        gate = await pool.node("a", shard=where)
        reader, writer, reply = await dial(gate, "shard")
        assert reply == 0
        assert await converse(reader, writer, b"near") == b"near"
    assert not pool.exchange.called


async def test_what_was_said_before_the_end_arrives(pool: Bench) -> None:
    said: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        said.set_result(await reader.read(-1))
        writer.close()

    async with engine(listen) as where:
        await pool.node("b", shard=where)
        gate = await pool.node("a")
        _, writer, _ = await dial(gate, "shard")
        writer.write(b"x" * MIB)
        writer.close()
        assert len(await said) == MIB


async def test_a_reader_that_does_not_read_holds_its_writer_back_and_nobody_else(pool: Bench) -> None:
    stuck = asyncio.Event()

    async def deaf(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await stuck.wait()
        writer.close()

    async with engine(deaf) as where, engine(echo) as other:
        await pool.node("b", deaf=where, echo=other)
        gate = await pool.node("a")
        _, writer, _ = await dial(gate, "deaf")
        sent = 0

        async def flood() -> None:
            nonlocal sent
            while True:
                writer.write(bytes(MIB))
                await writer.drain()
                sent += MIB

        flooding = asyncio.create_task(flood())
        content = random.Random(1).randbytes(8 * MIB)
        for _ in range(4):
            reader, quick, _ = await dial(gate, "echo")
            assert await converse(reader, quick, content) == content
        assert sent <= 32 * MIB, "sockets and windows hold a few MiB; more would be a queue that grows"
        stuck.set()
        flooding.cancel()
        writer.close()


async def test_an_end_that_dies_is_told_to_the_other(pool: Bench) -> None:
    met: list[asyncio.StreamWriter] = []

    async def dying(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        met.append(writer)
        await reader.readexactly(100)
        writer.transport.abort()

    async with engine(dying) as where:
        await pool.node("b", shard=where)
        gate = await pool.node("a")
        reader, writer, reply = await dial(gate, "shard")
        assert reply == 0
        writer.write(bytes(100))
        assert await reader.read() == b""
        writer.close()
    await until_async(lambda: not pool.relay.pairs(), what="the end of the pipe")


async def test_a_node_that_vanishes_ends_its_pipes(pool: Bench) -> None:
    async with engine(echo) as where:
        await pool.node("b", shard=where)
        vanishing = pool.running[-1]
        gate = await pool.node("a")
        reader, writer, _ = await dial(gate, "shard")
        writer.write(b"hello")
        assert await reader.readexactly(5) == b"hello"
        vanishing.cancel()
        assert await reader.read() == b""
        writer.close()
    await until_async(lambda: not pool.relay.pairs(), what="the end of the pipe")


async def test_a_gate_that_is_stopped_ends_at_once_with_all_its_pipes(pool: Bench) -> None:
    async with engine(echo) as where:
        gate = await pool.node("a", shard=where)
        reader, writer, _ = await dial(gate, "shard")
        writer.write(b"hello")
        assert await reader.readexactly(5) == b"hello"
        pool.running[-1].cancel()
        await asyncio.wait([pool.running[-1]])
        assert await reader.read() == b""
        writer.close()


async def test_a_pipe_in_which_nothing_moves_is_closed(tmp_path: Path) -> None:
    async with bench(tmp_path, replace(PATIENT, idle_s=0.3)) as pool, engine(echo) as where:
        await pool.node("b", shard=where)
        gate = await pool.node("a")
        reader, writer, reply = await dial(gate, "shard")
        assert reply == 0
        async with asyncio.timeout(DEADLINE_S):
            assert await reader.read() == b""
        writer.close()


class Late:
    """An end that speaks in the very moment in which its pipe's patience ends."""

    async def read(self) -> bytes:
        spoken = asyncio.Event()
        # In the same turn of the loop as the timeout, and before it.
        asyncio.get_running_loop().call_later(PATIENT.idle_s - 1e-10, spoken.set)
        await spoken.wait()
        return b"late"

    async def write(self, data: bytes) -> None:
        return

    async def finish(self) -> bool:
        return True


def test_bytes_that_come_as_patience_ends_are_no_fault() -> None:
    """A fault in one pipe would end its node's gate, and with it the node."""
    assert virtually(pump(Late(), Late(), PATIENT)) == "nothing moved"


# -- who is refused ---------------------------------------------------------------------------------------------------


async def refusal(line: Line, endpoint: str = "shard", why: Why = Why.SILENT) -> str:
    with pytest.raises(PeerError) as error:
        async with line.open(pipe_name(endpoint, b""), why):
            pass
    return str(error.value)


async def test_only_names_that_the_coordinator_knows_can_be_dialled(pool: Bench) -> None:
    line = pool.line("a")
    assert await refusal(line, "tcp://169.254.169.254:80") == "no engine of this name works with you"
    with pytest.raises(PeerError, match="no name of an engine"):
        async with line.open("127.0.0.1:22", Why.SILENT):
            pass
    with pytest.raises(PeerError, match="no reason to call"):
        async with line.open(pipe_name("shard", b""), "because"):  # type: ignore[arg-type]
            pass


async def test_a_node_takes_calls_for_its_own_engines_only(tmp_path: Path) -> None:
    async with bench(tmp_path, replace(PATIENT, take_s=0.5)) as pool:
        await pool.node("b")
        pool.exchange.places[pipe_name("shard", b"")] = Place("b", "a shard that b does not have", "shard")
        assert await refusal(pool.line("a")) == "b did not take the call"


async def test_only_the_node_that_was_called_may_take_the_call(pool: Bench) -> None:
    pool.exchange.places[pipe_name("shard", b"")] = Place("b", "a shard", "shard")
    pool.exchange.gates["b"] = cast(Any, Silent())
    asking = asyncio.create_task(refusal(pool.line("a")))
    await until_async(lambda: pool.exchange.called, deadline_s=DEADLINE_S, what="the call")
    number = pool.exchange.called[-1][1]
    with pytest.raises(PeerError, match="nobody calls any more"):
        async with pool.line("thief").take(number):
            pass
    pool.relay.expel("b", "enough")
    assert await asking == "enough"


async def test_a_node_that_is_not_connected_cannot_be_called(pool: Bench) -> None:
    pool.exchange.places[pipe_name("shard", b"")] = Place("gone", "a shard", "shard")
    assert await refusal(pool.line("a")) == "gone is not connected"


async def test_a_revoked_node_loses_its_pipes_and_gets_none(pool: Bench) -> None:
    async with engine(echo) as where:
        await pool.node("b", shard=where)
        gate = await pool.node("a")
        reader, writer, _ = await dial(gate, "shard")
        writer.write(b"hello")
        assert await reader.readexactly(5) == b"hello"
        pool.exchange.revoked.add("a")
        pool.relay.expel("a", "a was revoked")
        assert await reader.read() == b""
        writer.close()
        reader, writer, _ = await dial(gate, "shard")
        assert await reader.read() == b""
        writer.close()
    assert "a was revoked" in await refusal(pool.line("a"))


async def test_certificates_of_others_are_refused(pool: Bench, tmp_path: Path) -> None:
    stranger = Authority.open(tmp_path / "other", 10**18).enrol("a", "node", 10**18)
    mixed = replace(stranger, authority_pem=pool.identity("a").authority_pem)
    async with engine(echo) as where:
        await pool.node("b", shard=where)
        assert await refusal(Line(pool.server.control_address, lambda: mixed, PATIENT))
    assert not pool.exchange.called


async def test_an_operator_may_call_and_takes_no_calls(pool: Bench) -> None:
    person = pool.authority.enrol("me", "operator", NOW_NS)
    line = Line(pool.server.control_address, lambda: person, PATIENT)
    async with engine(echo) as where:
        await pool.node("b", shard=where)
        async with line.open(pipe_name("shard", b""), Why.SILENT):
            assert pool.exchange.told == [("operator me", "shard of b", Why.SILENT)]
    with pytest.raises(PeerError, match="takes a certificate of role node"):
        async with line.take(1):
            pass


async def test_there_are_not_more_pipes_than_allowed(tmp_path: Path) -> None:
    async with bench(tmp_path, replace(PATIENT, pipes_per_node=2)) as pool, engine(echo) as where:
        await pool.node("b", shard=where)
        lines = [pool.line(name) for name in "acd"]
        async with lines[0].open(pipe_name("shard", b""), Why.SILENT):
            async with lines[1].open(pipe_name("shard", b""), Why.SILENT):
                assert await refusal(lines[2]) == "b has 2 pipes already"


async def test_an_oversized_message_ends_the_pipe(pool: Bench) -> None:
    async with engine(echo) as where:
        await pool.node("b", shard=where)
        async with pool.line("a").open(pipe_name("shard", b""), Why.SILENT) as call:
            await call.write(bytes(PATIENT.message_nbytes + 1))
            with pytest.raises(grpc.aio.AioRpcError, match="is outside of 1 to 1048576"):
                await call.read()


async def test_the_gate_is_for_its_own_engines(pool: Bench) -> None:
    async with engine(echo) as where:
        gate = await pool.node("a", shard=where)
        _, writer, reply = await dial(gate, "shard", secret="0" * 32)
        assert reply != 0
        writer.close()
        host, port = gate.proxy.split(":")
        for garbage in (
            b"GET / HTTP/1.1\r\n\r\n",
            b"\x05\x01\x02",
            b"\x05\x01\x00\x05\x02\x00\x01" + bytes(6),
            b"\x04",
        ):
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(garbage)
            if writer.can_write_eof():
                writer.write_eof()
            assert b"\x05\x00\x00\x01" not in await reader.read()
            writer.close()
        reader, writer, reply = await dial(gate, "shard")
        assert reply == 0
        assert await converse(reader, writer, b"still") == b"still"


DIALS = """
import sys, threading, zmq
context = zmq.Context()
for turn in range(5):
    socket = context.socket(zmq.DEALER)
    socket.linger, socket.reconnect_ivl = 0, 50
    socket.setsockopt_string(zmq.SOCKS_PROXY, sys.argv[1])
    socket.connect(sys.argv[2])
    socket.poll(200)
    socket.close(0)
"""


async def test_an_engine_that_cannot_be_connected_lives_on_and_asks_no_more_often_than_it_may(tmp_path: Path) -> None:
    """libzmq aborts the whole process where a SOCKS proxy refuses it and the socket is closed then.

    And it connects again 50 ms after a connection that stood has ended: one dead shard would cost the coordinator
    twenty calls a second of every engine that wants it.
    """
    async with bench(tmp_path, replace(PATIENT, refused_s=20.0)) as pool, asyncio.timeout(DEADLINE_S):
        gate = await pool.node("a")
        pool.exchange.places[pipe_name("gone", b"")] = Place("gone", "a shard", "gone")
        target = f"tcp://{gate.secret}.silent.{pipe_name('gone', b'')}:1"
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", DIALS, gate.proxy, target)
        assert await process.wait() == 0
        assert len(pool.exchange.called) == 5, "once for each of its sockets"
