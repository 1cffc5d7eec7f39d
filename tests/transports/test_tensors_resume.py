"""A transfer that is cut at nine tenths sends at most fifteen per cent of its bytes again."""

from __future__ import annotations

import asyncio
import os
import signal
import struct
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest
from tests.transports.tensors_setup import Shelf, ask_for, header_of
from tests.waiting import until_async

from medley.transports.tensors import Curve, Limits, Peer, TensorPlane

NBYTES = 8 * 1024 * 1024
DATA = os.urandom(NBYTES)
LIMITS = Limits(chunk_nbytes=65536, window_chunks=8, floor_s=30.0)


class Cable:
    """A TCP relay that is cut once, when `cut_at` bytes have passed in the direction that carries the object."""

    def __init__(self, endpoint: str, cut_at: int, upstream: bool) -> None:
        host, port = endpoint.removeprefix("tcp://").split(":")
        self.target = (host, int(port))
        self.cut_at, self.upstream = cut_at, upstream
        self.passed = 0
        self.cuts = 0

    async def __aenter__(self) -> Cable:
        self.server = await asyncio.start_server(self._relay, "127.0.0.1", 0)
        port = self.server.sockets[0].getsockname()[1]
        self.endpoint = f"tcp://127.0.0.1:{port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self.server.close()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(*self.target)

        async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter, counted: bool) -> None:
            try:
                while data := await source.read(65536):
                    self.passed += len(data) if counted else 0
                    if not self.cuts and self.passed >= self.cut_at:
                        self.cuts += 1
                        break
                    sink.write(data)
                    await sink.drain()
            except OSError:
                pass
            writer.transport.abort()
            far_writer.transport.abort()

        await asyncio.gather(pump(reader, far_writer, self.upstream), pump(far_reader, writer, not self.upstream))


@pytest.mark.parametrize("keys", [False, True], ids=["plain", "curve"])
@pytest.mark.parametrize("way", ["put", "get"])
async def test_a_dropped_connection_costs_little(way: str, keys: bool) -> None:
    shelf = Shelf(stock={"b": [DATA]})
    near, far = (Curve.generate(), Curve.generate()) if keys else (None, None)
    async with (
        await TensorPlane.open(
            "127.0.0.1", identity=far, limits=LIMITS, allow=lambda key: True, handler=shelf
        ) as server,
        await TensorPlane.open("127.0.0.1", identity=near, limits=LIMITS, handler=Shelf()) as client,
        Cable(server.endpoint, NBYTES * 9 // 10, upstream=way == "put") as cable,
    ):
        peer = Peer(cable.endpoint, server.public_key)
        if way == "put":
            assert await client.put(peer, header_of("a", DATA), [DATA]) == b"thanks for a"
            assert shelf.arrived["a"] == DATA
            assert shelf.calls["offer"] == 1
        else:
            assert await client.get(peer, ask_for("b"), bytearray) == DATA
        assert cable.cuts == 1
        sent = (client if way == "put" else server).counters()["bytes_sent"]
        assert NBYTES < sent <= NBYTES * 1.15
        assert cable.passed <= NBYTES * 1.15


async def test_a_lost_reply_is_answered_again_without_the_bytes() -> None:
    shelf = Shelf(gate=asyncio.Event())
    async with (
        await TensorPlane.open("127.0.0.1", identity=None, limits=LIMITS, handler=shelf) as server,
        await TensorPlane.open("127.0.0.1", identity=None, limits=LIMITS, handler=Shelf()) as client,
        Cable(server.endpoint, 1 << 62, upstream=True) as cable,
    ):
        async with asyncio.TaskGroup() as group:
            put = group.create_task(client.put(Peer(cable.endpoint), header_of("a", DATA), [DATA]))
            await until_async(lambda: shelf.calls["received"] == 1)
            cable.cut_at = 0
            await until_async(lambda: client.counters()["connections_lost"] == 1)
            assert shelf.gate is not None
            shelf.gate.set()
        assert put.result() in (b"thanks for a", b"already")
        assert client.counters()["bytes_sent"] == NBYTES
        assert shelf.calls["received"] == 1


class Process:
    """The receiver of `tensors_receiver.py`; whatever becomes of the test, none is left running."""

    def __init__(self, directory: Path, identity: Curve, client: Curve) -> None:
        self.directory, self.identity, self.client = directory, identity, client
        self.port = 0
        self.running: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.running is not None:
            self.running.kill()
            self.running.communicate()

    def start(self, kill_at: int) -> str:
        words = [
            str(self.port),
            str(self.directory),
            self.identity.public_key.hex(),
            self.identity.secret_key.hex(),
            self.client.public_key.hex(),
            str(kill_at),
        ]
        script = Path(__file__).with_name("tensors_receiver.py")
        self.running = subprocess.Popen(
            [sys.executable, str(script), *words],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.running.stdout is not None
        endpoint = self.running.stdout.readline().strip()
        self.port = int(endpoint.rpartition(":")[2])
        return endpoint

    def death(self) -> int:
        """Wait until it has killed itself."""
        assert self.running is not None
        self.running.wait(timeout=20)
        return self.end()

    def end(self) -> int:
        """Close its input, so that it ends by itself, and return its exit status."""
        assert self.running is not None
        self.running.communicate("", timeout=20)
        return self.running.returncode

    def recorded(self, name: str) -> int:
        """How many bytes of the object its journal says have arrived."""
        records = (self.directory / f"{name}.sums").read_bytes()[16:]
        return sum(length for _, length, _ in struct.iter_unpack("<QQQ", records))


async def test_a_receiver_killed_at_nine_tenths_resumes_from_its_file(tmp_path: Path) -> None:
    server_id, client_id = Curve.generate(), Curve.generate()
    with Process(tmp_path, server_id, client_id) as receiver:
        endpoint = await asyncio.to_thread(receiver.start, NBYTES * 9 // 10)
        async with (
            await TensorPlane.open("127.0.0.1", identity=client_id, limits=LIMITS, handler=Shelf()) as client,
            asyncio.TaskGroup() as group,
        ):
            peer = Peer(endpoint, server_id.public_key)
            put = group.create_task(client.put(peer, header_of("model", DATA), [DATA]))
            assert await asyncio.to_thread(receiver.death) == -signal.SIGKILL
            assert not (tmp_path / "model").exists()
            assert NBYTES * 0.9 <= receiver.recorded("model") <= NBYTES * 0.91
            sent_before = client.counters()["bytes_sent"]
            assert sent_before >= receiver.recorded("model")
            await asyncio.to_thread(receiver.start, -1)
            assert await put == b"model"
        # nothing at all is sent twice when the last chunk the sender's window allowed is the one that killed
        assert NBYTES <= client.counters()["bytes_sent"] <= NBYTES * 1.15
        assert client.counters()["bytes_sent"] - sent_before <= NBYTES * 0.15
        assert (tmp_path / "model").read_bytes() == DATA
        assert await asyncio.to_thread(receiver.end) == 0
