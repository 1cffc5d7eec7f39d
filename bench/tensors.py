"""Speed of the tensor plane against raw pyzmq (same frames, same window) and gRPC byte streaming, two processes each;
and of the same plane through pipes (docs/design/links.md), with the processes that carry them.

Prints one line of JSON. Rounds are interleaved and medians taken, because a busy machine slows them all alike:

    python bench/tensors.py [--mib 256] [--rounds 5] [--out FILE]

`ratio_*` compares bytes per second within each round (median of rounds, mean of push and pull). gRPC encrypted uses TLS
with a throw-away certificate. `ratio_vault_pipe` and `ratio_shard_pipe` are the plane through the coordinator to its
own vault, and to a shard that only its node reaches, against the plane directly; all on one machine, so the processes
that carry the bytes compete with the two that send and receive them.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import datetime
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import Any, Self

import grpc
import zmq
from tunnels import serve_node, serve_relay, ways_through

from medley.transports.tensors import Accept, Curve, Header, Kind, Limits, Peer, Refuse, Source, TensorPlane
from medley.transports.tensors.heap import keep_freed_chunks
from medley.transports.tensors.wire import Frame, Type

MIB = 1024 * 1024
CHUNK_NBYTES = MIB
WINDOW_CHUNKS = 8
HEAD = Frame(Type.CHUNK, 1).encode()


# -- the tensor plane ------------------------------------------------------------------------------


class Echo:
    """Takes every object into one reused buffer and serves the same bytes back."""

    def __init__(self, nbytes: int) -> None:
        self.buffer = bytearray(nbytes)

    async def offer(self, peer_key: bytes, header: Header) -> Accept | Refuse:
        return Accept(self.buffer)

    async def received(self, peer_key: bytes, header: Header, buffer: memoryview) -> bytes:
        return b"ok"

    async def asked(self, peer_key: bytes, header: Header) -> Source:
        return Source([self.buffer], len(self.buffer))


def serve_plane(pipe: Connection, nbytes: int, server: Curve | None, client: Curve | None) -> None:
    async def main() -> None:
        allowed = {client.public_key} if client else set()
        plane = await TensorPlane.open("127.0.0.1", identity=server, allow=allowed.__contains__, handler=Echo(nbytes))
        pipe.send(plane.endpoint)
        await asyncio.to_thread(pipe.recv)
        await plane.close()

    asyncio.run(main())


class PlaneClient:
    def __init__(
        self, endpoint: str, server: Curve | None, client: Curve | None, gate: tuple[str, str] | None = None
    ) -> None:
        self.peer = Peer(endpoint, server.public_key if server else None)
        self.runner = asyncio.Runner()
        ways = ways_through(*gate) if gate else None
        opening = TensorPlane.open(
            "127.0.0.1", identity=client, handler=Echo(0), limits=Limits(floor_s=60.0), ways=ways
        )
        self.plane = self.runner.run(opening)
        self.sequence = 0

    def push(self, data: memoryview) -> None:
        self.sequence += 1
        header = Header(kind=Kind.UPDATE, run="bench", sequence=self.sequence, nbytes=data.nbytes)
        self.runner.run(self.plane.put(self.peer, header, [data]))

    def pull(self, into: memoryview) -> None:
        self.runner.run(self.plane.get(self.peer, Header(kind=Kind.PULL, run="bench"), into))

    def close(self) -> None:
        self.runner.run(self.plane.close())
        self.runner.close()


# -- raw pyzmq: the same two frames a chunk, the same window, no checks, nothing kept ------------------


def raw_send(socket: zmq.Socket, prefix: list[bytes], data: memoryview) -> None:
    credit, sent, offset = WINDOW_CHUNKS, 0, 0
    total = data.nbytes // CHUNK_NBYTES
    while sent < total:
        while credit and sent < total:
            part = data[offset : offset + CHUNK_NBYTES]
            for piece in (*prefix, HEAD):
                socket.send(piece, zmq.SNDMORE)
            socket.send(part, copy=False)
            sent, offset, credit = sent + 1, offset + CHUNK_NBYTES, credit - 1
        if sent < total:
            socket.recv_multipart()
            credit += 1


def raw_receive(socket: zmq.Socket, prefix: list[bytes], nbytes: int) -> None:
    for _ in range(nbytes // CHUNK_NBYTES):
        for _ in range(len(prefix) + 1):
            socket.recv()
        socket.recv(copy=False)
        socket.send_multipart([*prefix, HEAD])


def serve_raw(pipe: Connection, nbytes: int, server: Curve | None, client: Curve | None) -> None:
    keep_freed_chunks()  # the plane does, so the ratio is not one of allocators
    context = zmq.Context()
    socket = context.socket(zmq.ROUTER)
    if server:
        server.apply_as_server(socket)
    pipe.send(f"tcp://127.0.0.1:{socket.bind_to_random_port('tcp://127.0.0.1')}")
    data = memoryview(bytearray(nbytes))
    while True:
        route, word = socket.recv_multipart()
        if word == b"push":
            raw_receive(socket, [route], nbytes)
            socket.send_multipart([route, b"done"])
        elif word == b"pull":
            raw_send(socket, [route], data)
        elif word == b"stop":
            break
    context.destroy(0)


class RawClient:
    def __init__(self, endpoint: str, server: Curve | None, client: Curve | None) -> None:
        keep_freed_chunks()
        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.DEALER)
        if server and client:
            client.apply_as_client(self.socket, server.public_key)
        self.socket.connect(endpoint)

    def push(self, data: memoryview) -> None:
        self.socket.send(b"push")
        raw_send(self.socket, [], data)
        while self.socket.recv() != b"done":
            pass

    def pull(self, into: memoryview) -> None:
        self.socket.send(b"pull")
        raw_receive(self.socket, [], into.nbytes)

    def close(self) -> None:
        self.socket.send(b"stop")
        self.context.destroy(1000)


# -- gRPC: streams of bytes messages of one chunk, synchronous (the faster of its two Python faces) -----

UNBOUNDED = [("grpc.max_receive_message_length", 2 * CHUNK_NBYTES), ("grpc.max_send_message_length", 2 * CHUNK_NBYTES)]


def chunks_of(data: memoryview) -> Iterator[bytes]:
    for offset in range(0, data.nbytes, CHUNK_NBYTES):
        yield bytes(data[offset : offset + CHUNK_NBYTES])


def fill(into: memoryview, chunks: Iterator[bytes]) -> None:
    offset = 0
    for chunk in chunks:
        into[offset : offset + len(chunk)] = chunk
        offset += len(chunk)


def serve_grpc(pipe: Connection, nbytes: int, certificate: tuple[bytes, bytes] | None) -> None:
    from concurrent.futures import ThreadPoolExecutor

    data = memoryview(bytearray(nbytes))

    def push(chunks: Iterator[bytes], context: Any) -> bytes:
        fill(data, chunks)
        return b"ok"

    def pull(request: bytes, context: Any) -> Iterator[bytes]:
        return chunks_of(data)

    server = grpc.server(ThreadPoolExecutor(2), options=UNBOUNDED)
    methods = {
        "Push": grpc.stream_unary_rpc_method_handler(push),
        "Pull": grpc.unary_stream_rpc_method_handler(pull),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bench.Bytes", methods),))
    if certificate:
        port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([certificate]))
    else:
        port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    pipe.send(f"127.0.0.1:{port}")
    pipe.recv()
    server.stop(None)


class GrpcClient:
    def __init__(self, endpoint: str, certificate: tuple[bytes, bytes] | None) -> None:
        if certificate:
            named = [*UNBOUNDED, ("grpc.ssl_target_name_override", "bench")]
            self.channel = grpc.secure_channel(endpoint, grpc.ssl_channel_credentials(certificate[1]), named)
        else:
            self.channel = grpc.insecure_channel(endpoint, UNBOUNDED)
        self._push = self.channel.stream_unary("/bench.Bytes/Push")
        self._pull = self.channel.unary_stream("/bench.Bytes/Pull")

    def push(self, data: memoryview) -> None:
        self._push(chunks_of(data), wait_for_ready=True)

    def pull(self, into: memoryview) -> None:
        fill(into, self._pull(b"", wait_for_ready=True))

    def close(self) -> None:
        self.channel.close()


def throw_away_certificate() -> tuple[bytes, bytes]:
    """A self-signed P-256 certificate for the name `bench`: (key, certificate), PEM."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "bench")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("bench")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    plain = serialization.NoEncryption()
    return key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain), certificate.public_bytes(pem)


# -- measuring -----------------------------------------------------------------------------------------


def drive(pipe: Connection, nbytes: int, make: Any, *args: Any) -> None:
    """The client's process: move the object on command and answer with bytes per second."""
    contender = make(*args)
    data, into = memoryview(os.urandom(nbytes)), memoryview(bytearray(nbytes))
    pipe.send("ready")
    while (word := pipe.recv()) != "stop":
        pipe.send(timed(contender.push, data) if word == "push" else timed(contender.pull, into))
    contender.close()


def timed(call: Any, argument: memoryview) -> float:
    started_at = time.perf_counter()
    call(argument)
    return argument.nbytes / (time.perf_counter() - started_at)


class Contender:
    """A server and a client, each in a process of its own."""

    def __init__(self, serve: Any, client: Any, nbytes: int, server_args: list[Any], client_args: list[Any]) -> None:
        context = multiprocessing.get_context("spawn")
        self.ends: list[tuple[Any, Connection]] = []
        endpoint = self._start(context, serve, nbytes, *server_args)
        self._start(context, drive, nbytes, client, endpoint, *client_args)

    @classmethod
    def through_pipe(cls, nbytes: int, keys: list[Curve | None], room: str, *, vault: bool) -> Self:
        """The plane, its client, and what lies between them: the relay, the client's node and, for a shard, its own."""
        made = cls.__new__(cls)
        made.ends = []
        context = multiprocessing.get_context("spawn")
        endpoint = made._start(context, serve_plane, nbytes, *keys)
        control = made._start(context, serve_relay, room, endpoint, vault)
        key = keys[0].public_key if keys[0] else b""
        gates = [
            made._start(context, serve_node, room, node, control, endpoint, key) for node in ("a" if vault else "ba")
        ]
        made._start(context, drive, nbytes, PlaneClient, endpoint, *keys, gates[-1])
        return made

    def _start(self, context: Any, target: Any, *args: Any) -> Any:
        ours, theirs = context.Pipe()
        process = context.Process(target=target, args=(theirs, *args), daemon=True)
        process.start()
        self.ends.append((process, ours))
        return ours.recv()

    def run(self, way: str) -> float:
        pipe = self.ends[-1][1]
        pipe.send(way)
        return pipe.recv()

    def stop(self) -> None:
        for process, pipe in reversed(self.ends):
            with contextlib.suppress(BrokenPipeError):  # the raw server ends with its client
                pipe.send("stop")
            process.join(10)


def measure(nbytes: int, rounds: int, encrypted: bool, room: str) -> dict[str, Any]:
    """Median bytes per second of each contender and direction, over interleaved rounds after one to warm up."""
    keys = [Curve.generate(), Curve.generate()] if encrypted else [None, None]
    certificate = [throw_away_certificate() if encrypted else None]
    contenders = {
        "plane": Contender(serve_plane, PlaneClient, nbytes, keys, keys),
        "raw_zmq": Contender(serve_raw, RawClient, nbytes, keys, keys),
        "grpc": Contender(serve_grpc, GrpcClient, nbytes, certificate, certificate),
        "vault_pipe": Contender.through_pipe(nbytes, keys, f"{room}/vault{encrypted}", vault=True),
        "shard_pipe": Contender.through_pipe(nbytes, keys, f"{room}/shard{encrypted}", vault=False),
    }
    speeds: dict[str, dict[str, list[float]]] = {name: {"push": [], "pull": []} for name in contenders}
    for round_ in range(rounds + 1):
        for name, contender in contenders.items():
            for way in ("push", "pull"):
                speed = contender.run(way)
                if round_:
                    speeds[name][way].append(speed)
    for contender in contenders.values():
        contender.stop()
    return summary(speeds)


def summary(speeds: dict[str, dict[str, list[float]]]) -> dict[str, Any]:
    return {
        "ratio_vs_raw_zmq": ratio(speeds["plane"], speeds["raw_zmq"]),
        "ratio_vs_grpc": ratio(speeds["plane"], speeds["grpc"]),
        "ratio_vault_pipe": ratio(speeds["vault_pipe"], speeds["plane"]),
        "ratio_shard_pipe": ratio(speeds["shard_pipe"], speeds["plane"]),
        "bytes_per_s": {
            name: {way: round(statistics.median(runs)) for way, runs in ways.items()} for name, ways in speeds.items()
        },
    }


def ratio(ours: dict[str, list[float]], theirs: dict[str, list[float]]) -> float:
    """Median over rounds of the ratio within a round, so that a slow minute counts against both; mean of both ways."""
    medians = [statistics.median(a / b for a, b in zip(ours[way], theirs[way], strict=True)) for way in ours]
    return round(statistics.mean(medians), 3)


def main() -> None:
    parser = argparse.ArgumentParser(description="The tensor plane against raw pyzmq and gRPC.")
    parser.add_argument("--mib", type=int, default=256, help="size of the object moved, MiB (default 256)")
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds whose median counts (default 5)")
    parser.add_argument("--out", help="also write the line to this file")
    options = parser.parse_args()
    nbytes = options.mib * MIB
    with tempfile.TemporaryDirectory() as room:
        figure = {
            "figure": "tensor_plane",
            "object_nbytes": nbytes,
            "chunk_nbytes": CHUNK_NBYTES,
            "rounds": options.rounds,
            **measure(nbytes, options.rounds, False, room),
            "encrypted": measure(nbytes, options.rounds, True, room),
        }
    line = json.dumps(figure)
    print(line)
    if options.out:
        with open(options.out, "w", encoding="utf-8") as file:
            file.write(line + "\n")


if __name__ == "__main__":
    main()
