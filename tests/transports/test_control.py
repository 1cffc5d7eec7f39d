"""The control plane over real sockets: who is let in, what is heard, and what an ended stream tells."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from medley.protocol import wire
from medley.protocol.doors import JoinReply, JoinRequest
from medley.protocol.errors import PeerError, Unavailable, UserError
from medley.protocol.messages import AssignWorker, Capability, Heartbeat, Hello, Refused, Welcome
from medley.transports.control.client import ControlClient, join
from medley.transports.control.contract import ATTACH, EOF, Limits, channel_options
from medley.transports.control.operator import OperatorClient
from medley.transports.control.server import ControlServer
from medley.transports.identity import Authority, Credentials

DEADLINE_S = 20
NOW_NS = time.time_ns()
QUICK = Limits(drain_timeout_s=0.2, outbound_nbytes=2 * 1024 * 1024, reconnect_last_s=0.4)
HELLO = Hello("n1", "b1", Capability(2, 1, "test", True, True), (), ())
PROCESS_HELLO = Hello("n1", "b1", Capability(1, 1, "", True, True), (), ())
PROCESS = Path(__file__).with_name("control_process.py")
Event = tuple[Any, ...]


class Recorder:
    """A handler that keeps what it is told, in order."""

    def __init__(self) -> None:
        self.events: asyncio.Queue[Event] = asyncio.Queue()
        self.refuse = ""
        self.asked: list[tuple[str, str]] = []
        self.followers_closed = asyncio.Event()

    def connected(self, node: str, boot: str) -> None:
        if self.refuse:
            raise PeerError(self.refuse)
        self.events.put_nowait(("connected", node, boot))

    def heard(self, node: str, envelope: wire.Envelope) -> None:
        self.events.put_nowait(("heard", node, envelope))

    def lost(self, node: str, boot: str) -> None:
        self.events.put_nowait(("lost", node, boot))

    async def ask(self, method: str, body: bytes, caller: str) -> bytes:
        self.asked.append((method, caller))
        if method == "fail":
            raise UserError("there is no job 'x'; did you mean 'y'?")
        return body

    async def follow(self, method: str, body: bytes, caller: str) -> AsyncGenerator[bytes, None]:
        try:
            for _ in range(3):
                yield body
            if method == "fail":
                raise UserError("the job is gone")
            if method == "endless":
                await asyncio.Event().wait()
        finally:
            self.followers_closed.set()

    async def join(self, request: JoinRequest) -> JoinReply:
        if request.secret != "right":
            raise UserError("the token is not valid")
        return JoinReply(b"cert", b"authority", request.node or "n7", "host:1", "")

    async def next(self) -> Event:
        async with asyncio.timeout(DEADLINE_S):
            return await self.events.get()

    async def expect(self, *events: Event) -> None:
        assert [await self.next() for _ in events] == list(events)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.open(tmp_path_factory.mktemp("pool"), NOW_NS)


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


async def open_server(authority: Authority, recorder: Recorder, port: int = 0) -> ControlServer:
    return await ControlServer.open(
        host="127.0.0.1",
        control_port=port,
        door_port=0,
        identity=authority.serve("c1", [], NOW_NS),
        handler=recorder,
        limits=QUICK,
    )


@pytest.fixture
async def server(authority: Authority, recorder: Recorder) -> AsyncIterator[ControlServer]:
    server = await open_server(authority, recorder)
    yield server
    await server.close()


class Node:
    """A running ControlClient and what it was told."""

    def __init__(self) -> None:
        self.client = ControlClient(rng=random.Random(7), limits=QUICK)
        self.inbox: asyncio.Queue[wire.Envelope] = asyncio.Queue()
        self.reasons: asyncio.Queue[str] = asyncio.Queue()
        self.up = asyncio.Event()


@contextlib.asynccontextmanager
async def running(
    address: str, identity: Credentials, hello: Callable[[], Hello] = lambda: HELLO
) -> AsyncIterator[Node]:
    node = Node()
    async with asyncio.TaskGroup() as tasks:
        run = node.client.run(
            address, identity, hello, node.inbox.put_nowait, connected=node.up.set, disconnected=node.reasons.put_nowait
        )
        task = tasks.create_task(run)
        async with asyncio.timeout(DEADLINE_S):
            yield node
        task.cancel()


@contextlib.asynccontextmanager
async def raw_stream(address: str, identity: Credentials) -> AsyncIterator[Any]:
    """A stream without our client's manners."""
    credentials = grpc.ssl_channel_credentials(identity.authority_pem, identity.key_pem, identity.cert_pem)
    options = [("grpc.max_send_message_length", -1), *channel_options(QUICK)]
    async with grpc.aio.secure_channel(address, credentials, options) as channel:
        async with asyncio.timeout(DEADLINE_S):
            yield channel.stream_stream(ATTACH)()


def heard(message: Any, cause: str = "") -> Event:
    return ("heard", "n1", wire.Envelope(message, cause, 0))


async def test_messages_cross_in_order_both_ways(authority, server, recorder) -> None:
    async with running(server.control_address, authority.enrol("n1", "node", NOW_NS)) as node:
        await recorder.expect(("connected", "n1", "b1"), heard(HELLO))
        assert server.nodes == ("n1",)
        assert server.send("n1", Welcome(4, 500), "start", 4)
        assert server.send("n1", Welcome(5, 500), "again", 5)
        assert await node.inbox.get() == wire.Envelope(Welcome(4, 500), "start", 4)
        assert await node.inbox.get() == wire.Envelope(Welcome(5, 500), "again", 5)
        assert node.client.connected
        beats = [Heartbeat("n1", (), ()) for _ in range(3)]
        assert all(node.client.send(beat, f"tick{i}") for i, beat in enumerate(beats))
        await recorder.expect(*(heard(beat, f"tick{i}") for i, beat in enumerate(beats)))
    await recorder.expect(("lost", "n1", "b1"))
    assert not server.send("n1", Welcome(5, 500))
    assert not node.client.send(beats[0])


async def test_a_disconnected_node_hears_what_was_said_before_and_comes_back(authority, server, recorder) -> None:
    async with running(server.control_address, authority.enrol("n1", "node", NOW_NS)) as node:
        await recorder.expect(("connected", "n1", "b1"), heard(HELLO))
        server.send("n1", Refused("you were removed"))
        server.disconnect("n1", "removed")
        await recorder.expect(("lost", "n1", "b1"))
        assert (await node.inbox.get()).message == Refused("you were removed")
        assert await node.reasons.get() == "removed"
        await recorder.expect(("connected", "n1", "b1"), heard(HELLO))


async def test_a_node_that_outruns_its_stream_reconnects(authority, server, recorder) -> None:
    async with running(server.control_address, authority.enrol("n1", "node", NOW_NS)) as node:
        await recorder.expect(("connected", "n1", "b1"), heard(HELLO))
        await node.up.wait()
        sent = [node.client.send(Heartbeat("n1", (), ())) for _ in range(QUICK.outbound_messages + 1)]
        assert sent == [True] * QUICK.outbound_messages + [False]
        assert await node.reasons.get() == "the coordinator reads too slowly"
        while (await recorder.next())[0] != "lost":
            pass
        await recorder.expect(("connected", "n1", "b1"), heard(HELLO))


async def test_a_handler_may_refuse_a_node(authority, server, recorder) -> None:
    recorder.refuse = "node 'n1' was revoked"
    async with running(server.control_address, authority.enrol("n1", "node", NOW_NS)) as node:
        assert await node.reasons.get() == "node 'n1' was revoked"
    assert server.nodes == ()


async def test_the_second_life_of_a_node_replaces_the_first(authority, server, recorder) -> None:
    identity = authority.enrol("n1", "node", NOW_NS)
    second = Hello("n1", "b2", HELLO.capability, (), ())
    async with raw_stream(server.control_address, identity) as first:
        await first.write(wire.encode(HELLO))
        await recorder.expect(("connected", "n1", "b1"), heard(HELLO))
        async with running(server.control_address, identity, lambda: second):
            await recorder.expect(("lost", "n1", "b1"), ("connected", "n1", "b2"), heard(second))
            assert await first.code() == grpc.StatusCode.ABORTED
            assert server.nodes == ("n1",)
        await recorder.expect(("lost", "n1", "b2"))


async def test_a_stream_that_does_not_read_is_closed(authority, server, recorder) -> None:
    message = AssignWorker("job", 1, "x" * 500_000, 1)
    async with raw_stream(server.control_address, authority.enrol("n1", "node", NOW_NS)) as call:
        await call.write(wire.encode(HELLO))
        await recorder.expect(("connected", "n1", "b1"), heard(HELLO))
        sent = 0
        while server.send("n1", message):
            sent += 1
            await asyncio.sleep(0)
            assert sent < 1000
        await recorder.expect(("lost", "n1", "b1"))
        assert server.nodes == ()
        with pytest.raises(grpc.aio.AioRpcError):
            while await call.read() is not EOF:
                pass


async def test_nobody_enters_under_another_name(authority, server, recorder) -> None:
    async with running(server.control_address, authority.enrol("n2", "node", NOW_NS)) as node:
        assert "certificate is of node 'n2'" in await node.reasons.get()
    async with running(server.control_address, authority.enrol("n1", "operator", NOW_NS)) as node:
        assert "takes a certificate of role node" in await node.reasons.get()
    assert recorder.events.empty()


async def test_a_foreign_fleet_is_refused_on_both_sides(authority, server, recorder, tmp_path) -> None:
    foreign = Authority.open(tmp_path, NOW_NS)
    trusting = foreign.enrol("n1", "node", NOW_NS)
    for identity in (trusting, Credentials(trusting.cert_pem, trusting.key_pem, authority.certificate_pem)):
        async with running(server.control_address, identity) as node:
            assert await node.reasons.get()
    with pytest.raises((UserError, Unavailable), match="fleet|answers"):
        with OperatorClient(server.control_address, foreign.enrol("me", "operator", NOW_NS), QUICK) as operator:
            await asyncio.to_thread(operator.ask, "jobs", {})
    with pytest.raises(UserError, match="fleet"):
        await join(server.door_address, foreign.certificate_pem, JoinRequest("1", "right", b"csr", ""), QUICK)
    assert recorder.events.empty()
    assert recorder.asked == []


@pytest.mark.parametrize(
    ("first", "code"),
    [
        (wire.encode(Heartbeat("n1", (), ())), grpc.StatusCode.INVALID_ARGUMENT),
        (b"\xff garbage", grpc.StatusCode.INVALID_ARGUMENT),
        (b"", grpc.StatusCode.INVALID_ARGUMENT),
        (bytes(wire.MAX_NBYTES + 1), grpc.StatusCode.RESOURCE_EXHAUSTED),
    ],
    ids=["no hello", "garbage", "empty", "oversized"],
)
async def test_a_bad_first_message_ends_the_stream(authority, server, recorder, first, code) -> None:
    async with raw_stream(server.control_address, authority.enrol("n1", "node", NOW_NS)) as call:
        await call.write(first)
        assert await call.code() == code
    assert recorder.events.empty()


@pytest.mark.parametrize("later", [b"\xff garbage", bytes(wire.MAX_NBYTES + 1)], ids=["garbage", "oversized"])
async def test_a_bad_later_message_ends_the_stream(authority, server, recorder, later) -> None:
    async with raw_stream(server.control_address, authority.enrol("n1", "node", NOW_NS)) as call:
        await call.write(wire.encode(HELLO))
        await recorder.expect(("connected", "n1", "b1"), heard(HELLO))
        await call.write(later)
        assert await call.code() in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED)
        await recorder.expect(("lost", "n1", "b1"))


async def test_a_second_hello_ends_the_stream(authority, server, recorder) -> None:
    other = Hello("n2", "b1", HELLO.capability, (), ())
    async with raw_stream(server.control_address, authority.enrol("n1", "node", NOW_NS)) as call:
        await call.write(wire.encode(HELLO))
        await recorder.expect(("connected", "n1", "b1"), heard(HELLO))
        await call.write(wire.encode(other))
        assert await call.code() == grpc.StatusCode.PERMISSION_DENIED
        await recorder.expect(("lost", "n1", "b1"))


async def test_who_has_no_more_to_say_hears_that_the_stream_ended(authority, server, recorder) -> None:
    async with raw_stream(server.control_address, authority.enrol("n1", "node", NOW_NS)) as call:
        await call.write(wire.encode(HELLO))
        await recorder.expect(("connected", "n1", "b1"), heard(HELLO))
        await call.done_writing()
        assert await call.details() == "the node left"
        await recorder.expect(("lost", "n1", "b1"))


async def test_strangers_on_the_ports_harm_nothing(authority, server, recorder) -> None:
    for address in (server.control_address, server.door_address):
        host, _, port = address.rpartition(":")
        for noise in (random.Random(3).randbytes(4096), b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b""):
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(noise)
            writer.write_eof()
            with contextlib.suppress(ConnectionError):
                async with asyncio.timeout(DEADLINE_S):
                    await reader.read()
            writer.close()
    async with running(server.control_address, authority.enrol("n1", "node", NOW_NS)):
        await recorder.expect(("connected", "n1", "b1"), heard(HELLO))


async def test_an_operator_asks_and_follows(authority, server, recorder) -> None:
    def talk() -> list[Any]:
        with OperatorClient(server.control_address, authority.enrol("me", "operator", NOW_NS), QUICK) as operator:
            with pytest.raises(UserError, match="did you mean 'y'"):
                operator.ask("fail")
            with pytest.raises(UserError, match="the job is gone"):
                list(operator.follow("fail"))
            return [operator.ask("jobs", {"a": 1}), *operator.follow("log", {"b": 2})]

    assert await asyncio.to_thread(talk) == [{"a": 1}, {"b": 2}, {"b": 2}, {"b": 2}]
    assert recorder.asked == [("fail", "me"), ("jobs", "me")]


async def test_a_follower_who_leaves_ends_the_following(authority, server, recorder) -> None:
    def peek() -> Any:
        with OperatorClient(server.control_address, authority.enrol("me", "operator", NOW_NS), QUICK) as operator:
            with contextlib.closing(operator.follow("endless", {"b": 2})) as answers:
                return next(answers)

    assert await asyncio.to_thread(peek) == {"b": 2}
    async with asyncio.timeout(DEADLINE_S):
        await recorder.followers_closed.wait()


async def test_a_node_may_not_ask_and_a_missing_coordinator_is_said_so(authority, server, recorder) -> None:
    with OperatorClient(server.control_address, authority.enrol("n1", "node", NOW_NS), QUICK) as operator:
        with pytest.raises(UserError, match="certificate of role operator"):
            await asyncio.to_thread(operator.ask, "jobs")
        with pytest.raises(UserError, match="certificate of role operator"):
            await asyncio.to_thread(list, operator.follow("jobs"))
    assert recorder.asked == []
    await server.close()
    with OperatorClient(server.control_address, authority.enrol("me", "operator", NOW_NS), QUICK) as operator:
        with pytest.raises(Unavailable, match="nothing answers"):
            await asyncio.to_thread(operator.ask, "jobs")


async def test_joining(authority, server) -> None:
    good = await join(server.door_address, authority.certificate_pem, JoinRequest("1", "right", b"csr", "n3"), QUICK)
    assert good == JoinReply(b"cert", b"authority", "n3", "host:1", "")
    bad = await join(server.door_address, authority.certificate_pem, JoinRequest("1", "wrong", b"csr", "n3"), QUICK)
    assert bad.refused == "the token is not valid"
    with pytest.raises((UserError, Unavailable)):
        await join(server.control_address, authority.certificate_pem, JoinRequest("1", "right", b"csr", ""), QUICK)


async def test_a_port_in_use_is_a_sentence(authority, server, recorder) -> None:
    port = int(server.control_address.rpartition(":")[2])
    with pytest.raises(UserError, match="cannot listen on 127.0.0.1"):
        await open_server(authority, recorder, port)


# -- processes that die ----------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def process(
    role: str, identity: Credentials, folder: Path, address: str
) -> AsyncIterator[asyncio.subprocess.Process]:
    identity.save(folder / role)
    child = await asyncio.create_subprocess_exec(
        sys.executable, str(PROCESS), role, str(folder / role), address, stdout=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(DEADLINE_S):
            yield child
    finally:
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        await child.wait()


async def said(child: asyncio.subprocess.Process, word: str) -> str:
    assert child.stdout is not None
    line = (await child.stdout.readline()).decode().strip()
    assert line.startswith(word), line
    return line


async def test_a_killed_coordinator_is_found_again(authority, tmp_path) -> None:
    identity = authority.serve("c1", [], NOW_NS)
    async with process("coordinator", identity, tmp_path, "127.0.0.1:0") as first:
        address = (await said(first, "listening")).split()[1]
        async with running(address, authority.enrol("n1", "node", NOW_NS)) as node:
            await said(first, "connected n1 b1")
            await said(first, "heard n1")
            first.kill()
            assert await node.reasons.get()
            async with process("coordinator", identity, tmp_path, address) as second:
                await said(second, "listening")
                await said(second, "connected n1 b1")
                await said(second, "heard n1")


async def _watching(authority: Authority, recorder: Recorder, keepalive_s: float) -> ControlServer:
    return await ControlServer.open(
        host="127.0.0.1",
        control_port=0,
        door_port=0,
        identity=authority.serve("c1", [], NOW_NS),
        handler=recorder,
        limits=Limits(keepalive_time_s=keepalive_s, keepalive_timeout_s=keepalive_s, drain_timeout_s=0.2),
    )


async def test_a_killed_node_is_lost_at_once(authority, recorder, tmp_path) -> None:
    # With keepalive out of the way, only the socket's own end can tell.
    server = await _watching(authority, recorder, keepalive_s=1000)
    identity = authority.enrol("n1", "node", NOW_NS)
    async with process("node", identity, tmp_path, server.control_address) as child:
        await recorder.expect(("connected", "n1", "b1"), heard(PROCESS_HELLO))
        child.kill()
        await recorder.expect(("lost", "n1", "b1"))
    await server.close()


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="processes cannot be stopped here")
async def test_a_node_that_falls_silent_is_lost_by_keepalive(authority, recorder, tmp_path) -> None:
    server = await _watching(authority, recorder, keepalive_s=0.3)
    identity = authority.enrol("n1", "node", NOW_NS)
    async with process("node", identity, tmp_path, server.control_address) as child:
        await recorder.expect(("connected", "n1", "b1"), heard(PROCESS_HELLO))
        # Its socket stays open, and its system goes on acknowledging bytes that nobody reads.
        child.send_signal(signal.SIGSTOP)
        await recorder.expect(("lost", "n1", "b1"))
    await server.close()
