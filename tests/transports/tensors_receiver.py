"""A receiver in a process of its own: `port directory public-hex secret-hex client-hex kill-at-byte`.

It receives into files and kills itself, as hard as the system allows, when the given byte has arrived (-1: never).
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

from medley.transports.tensors import (
    Accept,
    Already,
    Curve,
    FilePart,
    Header,
    Limits,
    Refuse,
    Source,
    TensorPlane,
)


class Files:
    def __init__(self, directory: Path, kill_at: int) -> None:
        self.directory, self.kill_at = directory, kill_at
        self.parts: dict[str, FilePart] = {}

    async def offer(self, peer_key: bytes, header: Header) -> Accept | Refuse | Already:
        part = await asyncio.to_thread(FilePart.open, self.directory / header.name, header)
        self.parts[header.name] = part
        accept = part.accept()

        def journal(offset: int, nbytes: int, check: int) -> None:
            part.journal(offset, nbytes, check)
            if 0 <= self.kill_at <= offset + nbytes:
                os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))

        return Accept(accept.buffer, part.have, journal)

    async def received(self, peer_key: bytes, header: Header, buffer: memoryview) -> bytes:
        path = await asyncio.to_thread(self.parts.pop(header.name).finish)
        return path.name.encode()

    async def asked(self, peer_key: bytes, header: Header) -> Source | Refuse:
        return Refuse("nothing is served here")


async def main(port: int, directory: str, public: str, secret: str, client: str, kill_at: int) -> None:
    identity = Curve(bytes.fromhex(public), bytes.fromhex(secret))
    plane = await TensorPlane.open(
        "127.0.0.1",
        port,
        identity=identity,
        limits=Limits(chunk_nbytes=65536, window_chunks=8),
        allow=lambda key: key == bytes.fromhex(client),
        handler=Files(Path(directory), kill_at),
    )
    print(plane.endpoint, flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await plane.close()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), *sys.argv[2:6], int(sys.argv[6])))
