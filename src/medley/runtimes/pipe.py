"""The pipe between a node's parent (roles) and its child (engine): length-prefixed frames of commands and reports.

Both ends are ours, so a bad frame is a bug and ends the process; sizes are checked all the same. The child's standard
output is the pipe, so anything that prints there is sent to standard error instead.
"""

from __future__ import annotations

import asyncio
import os
import struct
import sys
import threading
from typing import Any, BinaryIO

from medley.protocol.codec import MAX_BYTES, Codec
from medley.protocol.engine import Command, Report
from medley.protocol.errors import FrameError

COMMANDS = Codec(Command)
REPORTS = Codec(Report)
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
    """The child's end. Commands arrive in a queue of the event loop; when the parent is gone, so is the process."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.commands: asyncio.Queue[Any] = asyncio.Queue()
        self._lock = threading.Lock()
        self._out = _take_stdout()
        reader = threading.Thread(target=self._read, args=(sys.stdin.buffer,), name="pipe", daemon=True)
        reader.start()

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
            head = stream.read(_LENGTH.size)
            if len(head) < _LENGTH.size:
                os._exit(0)  # a computation may hold every other thread; the parent's death must not wait for it
            (length,) = _LENGTH.unpack(head)
            if length > MAX_BYTES:
                os._exit(1)
            command = COMMANDS.decode(stream.read(length))
            self._loop.call_soon_threadsafe(self.commands.put_nowait, command)


def _take_stdout() -> BinaryIO:
    """The real standard output for ourselves; whatever prints from now on goes to standard error."""
    private = os.dup(1)
    os.dup2(2, 1)
    return os.fdopen(private, "wb", buffering=0)
