"""The two ends of one stream of chunks, without sockets: what to send next, and where the next chunk may
land.

Chunks are taken in order only. A damaged chunk rewinds the sender to the last contiguous byte (go-back-n),
because damage is rare and order keeps both ends a pair of integers.
"""

from __future__ import annotations

import bisect
import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import xxhash

from medley.transports.tensors.contract import Buffer
from medley.transports.tensors.pace import Pace
from medley.transports.tensors.wire import Flag, Frame, Type


def as_bytes_view(buffer: Buffer) -> memoryview:
    """A flat view of unsigned bytes over any contiguous buffer. `ValueError` when it is not contiguous."""
    view = memoryview(buffer)
    if not view.c_contiguous:
        raise ValueError("a tensor buffer must be contiguous")
    return view.cast("B") if view.nbytes else memoryview(b"")


class Gather:
    """Several buffers read as one run of bytes, without copying where a chunk lies inside one buffer."""

    __slots__ = ("_starts", "_views", "nbytes")

    def __init__(self, buffers: Sequence[Buffer]) -> None:
        self._views = [view for view in map(as_bytes_view, buffers) if view.nbytes]
        self._starts: list[int] = []
        self.nbytes = 0
        for view in self._views:
            self._starts.append(self.nbytes)
            self.nbytes += view.nbytes

    def slice(self, offset: int, nbytes: int) -> memoryview | bytes:
        """`nbytes` bytes from `offset`; a copy only where they span buffers."""
        index = bisect.bisect_right(self._starts, offset) - 1
        start = offset - self._starts[index]
        first = self._views[index][start : start + nbytes]
        if first.nbytes == nbytes:
            return first
        parts: list[memoryview] = [first]
        missing = nbytes - first.nbytes
        while missing:
            index += 1
            part = self._views[index][:missing]
            parts.append(part)
            missing -= part.nbytes
        return b"".join(parts)


Send = Callable[[Frame, Buffer | None], bool]


@dataclass(slots=True)
class Outgoing:
    """The sending end. `send` returns False when the socket is full; `pump` is called again later."""

    send: Send
    transfer: int
    gather: Gather
    pace: Pace
    chunk_nbytes: int
    sent: int = 0
    acked: int = 0
    limit: int = 0
    acked_at: float = 0.0
    bytes_sent: int = 0
    blocked: bool = False

    @property
    def in_flight(self) -> int:
        return self.sent - self.acked

    def credit(self, frame: Frame, now: float) -> bool:
        """Take an acknowledgement and a new limit; True when it acknowledges new bytes. Nonsense changes nothing."""
        if not self.acked <= frame.offset <= self.sent:
            return False
        progress = frame.offset - self.acked
        if progress:
            self.pace.acknowledged(progress, now - self.acked_at)
            self.acked_at = now
        self.acked = frame.offset
        self.limit = max(self.limit, min(frame.total, self.gather.nbytes))
        if Flag.REWIND in frame.flags:
            self.sent = frame.offset
        return progress > 0

    def pump(self, now: float) -> None:
        """Send what credit and pace allow."""
        if self.in_flight == 0:
            self.acked_at = now
        top = min(self.limit, self.acked + self.pace.window_nbytes(self.chunk_nbytes))
        chunk = self.pace.chunk_nbytes(self.chunk_nbytes)
        self.blocked = False
        while self.sent < top:
            part = self.gather.slice(self.sent, min(chunk, self.limit - self.sent))
            check = xxhash.xxh3_64_intdigest(part)
            frame = Frame(Type.CHUNK, self.transfer, offset=self.sent, length=len(part), check=check)
            if not self.send(frame, part):
                self.blocked = True
                return
            self.sent += len(part)
            self.bytes_sent += len(part)


class Landing(enum.Enum):
    """What became of a chunk."""

    TAKEN = "taken"
    DAMAGED = "damaged"
    HOPELESS = "hopeless"
    UNSTORED = "unstored"


@dataclass(slots=True)
class Incoming:
    """The receiving end: a caller's buffer, and how much of it is contiguous and checked."""

    buffer: memoryview
    have: int
    window_nbytes: int
    chunk_nbytes_max: int
    resends: int
    journal: Callable[[int, int, int], None] | None = None
    granted: int = field(default=0)

    @property
    def nbytes(self) -> int:
        return self.buffer.nbytes

    @property
    def whole(self) -> bool:
        return self.have == self.nbytes

    def grant(self) -> int:
        """The absolute limit up to which the sender may now send."""
        self.granted = min(self.nbytes, self.have + self.window_nbytes)
        return self.granted

    def landing(self, frame: Frame) -> memoryview | None:
        """Where this chunk may land; None when it is late, early, too long or beyond the credit."""
        end = frame.offset + frame.length
        if frame.offset != self.have or not 0 < frame.length <= self.chunk_nbytes_max or end > self.granted:
            return None
        return self.buffer[frame.offset : end]

    def landed(self, frame: Frame, nbytes: int, view: memoryview) -> Landing:
        """Check what arrived in `view` against what the frame claims."""
        if nbytes == frame.length and xxhash.xxh3_64_intdigest(view) == frame.check:
            return self._take(frame)
        self.resends -= 1
        return Landing.DAMAGED if self.resends >= 0 else Landing.HOPELESS

    def _take(self, frame: Frame) -> Landing:
        try:
            if self.journal is not None:
                self.journal(frame.offset, frame.length, frame.check)
        except (OSError, ValueError):  # a full disk, or a file closed under us
            return Landing.UNSTORED
        self.have += frame.length
        return Landing.TAKEN
