"""The pipe between a node's parent (roles) and its child (engine): length-prefixed frames of commands and reports.

Both ends are ours, so a bad frame is a bug and ends the process; sizes are checked all the same. The child's
standard output is the pipe, so anything that prints there is sent to standard error instead.
"""

from __future__ import annotations

import asyncio
import os
import struct
import threading
from typing import Any, BinaryIO

from medley.protocol.codec import MAX_BYTES, Codec
from medley.protocol.engine import Command, Progress, Report
from medley.protocol.errors import FrameError

COMMANDS = Codec(Command)
REPORTS = Codec(Report)
PROGRESS_S = 1.0
_LENGTH = struct.Struct("<I")


def frame(body: bytes) -> bytes:
    if len(body) > MAX_BYTES:
        raise FrameError(f"a frame of {len(body)} bytes is over the limit of {MAX_BYTES}")
    return _LENGTH.pack(len(body)) + body


async def read_frame(stream: asyncio.StreamReader) -> bytes | None:
    """The next frame, or None when the other end is gone."""
    try:
        (length,) = _LENGTH.unpack(await stream.readexactly(_LENGTH.size))
        if length > MAX_BYTES:
            raise FrameError(f"a frame of {length} bytes is over the limit of {MAX_BYTES}")
        return await stream.readexactly(length)
    except (asyncio.IncompleteReadError, ConnectionError):
        return None


class ChildLink:
    """The child's end. Commands arrive in a queue of the event loop; when the parent is gone, so is the process.

    Every `beat_s` seconds the loop says that it turns; `done` goes along, for whoever counts something.
    """

    def __init__(self, beat_s: float = PROGRESS_S) -> None:
        self.done = 0
        self._beat_s = beat_s
        self._loop = asyncio.get_running_loop()
        self.commands: asyncio.Queue[Any] = asyncio.Queue()
        self._lock = threading.Lock()
        self._out = _take_stdout()
        # unbuffered: a daemon thread that holds a buffer's lock at exit aborts the interpreter
        stream = os.fdopen(os.dup(0), "rb", buffering=0)
        reader = threading.Thread(target=self._read, args=(stream,), name="pipe", daemon=True)
        reader.start()
        self._loop.call_soon(self._beat)

    def _beat(self) -> None:
        self.send(Progress(self.done))
        self._loop.call_later(self._beat_s, self._beat)

    def send(self, report: Report) -> None:
        """Safe from any thread."""
        data = frame(REPORTS.encode(report))
        with self._lock:
            try:
                self._out.write(data)
                self._out.flush()
            except (BrokenPipeError, OSError):
                os._exit(0)

    def _read(self, stream: BinaryIO) -> None:
        while True:
            (length,) = _LENGTH.unpack(_exactly(stream, _LENGTH.size))
            if length > MAX_BYTES:
                os._exit(1)
            command = COMMANDS.decode(_exactly(stream, length))
            self._loop.call_soon_threadsafe(self.commands.put_nowait, command)


def _exactly(stream: BinaryIO, nbytes: int) -> bytes:
    """So many bytes, or the end of this process: a computation may hold every other thread of a child whose
    parent has died, and its end must not wait for that."""
    data = bytearray()
    while len(data) < nbytes:
        more = stream.read(nbytes - len(data))
        if not more:
            os._exit(0)
        data += more
    return bytes(data)


def _take_stdout() -> BinaryIO:
    """The real standard output for ourselves; whatever prints from now on goes to standard error."""
    private = os.dup(1)
    os.dup2(2, 1)
    return os.fdopen(private, "wb", buffering=0)
