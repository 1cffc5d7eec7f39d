"""Transfers that we open: Put and Get, one per call of the plane, each living through reconnections until its
deadline.

An attempt opens with OFFER or ASK under a new transfer number. A lost connection ends the attempt, not the
call; a call ends with its answer, with a refusal, or `Unavailable` after a believable time without progress.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from medley.protocol.errors import Unavailable
from medley.transports.tensors.contract import Refused
from medley.transports.tensors.flow import Gather, Incoming, Landing, Outgoing, as_bytes_view
from medley.transports.tensors.links import Dialled
from medley.transports.tensors.transfers import Host, incoming_of, pump, send_credit, settle
from medley.transports.tensors.wire import Flag, Frame, Header, Type, encode_header

BUSY_RETRY_S = 0.2
Progress = Callable[[int, int], None]


class Call(Protocol):
    """A transfer of ours that the engine starts when the connection stands."""

    attempt: Attempt

    def begin(self, transfer: int, now: float) -> None: ...

    def tick(self, now: float) -> None: ...

    def fail(self, error: Exception) -> None: ...


@dataclass(eq=False, slots=True)
class Attempt:
    """The life of a call across connections: its current transfer number, when to start again, when to give up."""

    dialled: Dialled
    host: Host
    alive_at: float
    progress_at: float
    transfer: int | None = None
    retry_at: float = 0.0
    finished: bool = False
    turned: bool = False

    def wanted(self, now: float) -> bool:
        return not self.finished and self.transfer is None and self.dialled.up and now >= self.retry_at

    def alive(self, now: float, *, progress: bool = False) -> None:
        self.alive_at = now
        if progress:
            self.progress_at, self.turned = now, False

    def turns(self, now: float) -> None:
        """Another way is tried. It has its own time, once: two that fail in turn must not lend each other theirs."""
        if not self.turned:
            self.turned = True
            self.alive(now)

    def detach(self) -> None:
        if self.transfer is not None:
            self.dialled.link.transfers.pop(self.transfer, None)
        self.transfer = None

    def overdue(self, in_flight: int, now: float) -> str | None:
        """Why to give up now, or None."""
        limits = self.host.limits
        patience = self.dialled.link.pace.patience_s(in_flight, limits.floor_s, limits.slack_s)
        if now - self.alive_at > patience:
            self.dialled.suspect = True
            return f"no progress for {patience:.1f} s: {self.dialled.why}"
        if now - self.progress_at > limits.wait_s:
            return f"kept waiting for {limits.wait_s:.0f} s"
        return None


@dataclass(eq=False, slots=True)
class Put:
    """Offer an object and send it; the answer is the receiver's reply body."""

    attempt: Attempt
    header: Header
    gather: Gather
    answer: Callable[[bytes | Exception], None]
    progress: Progress | None = None
    incoming: Incoming | None = None
    outgoing: Outgoing | None = None
    best: int = 0

    def begin(self, transfer: int, now: float) -> None:
        self.attempt.transfer = transfer
        self.outgoing = None
        self.attempt.dialled.link.transfers[transfer] = self
        self.attempt.dialled.link.send(Frame(Type.OFFER, transfer), encode_header(self.header))

    def frame(self, frame: Frame, body: bytes, now: float) -> None:
        match frame.type:
            case Type.ACCEPT if self.outgoing is None:
                self._accepted(frame, now)
            case Type.CREDIT | Type.DONE if self.outgoing is not None:
                self._credited(self.outgoing, frame, now)
            case Type.WORKING:
                self._working(now)
            case Type.REPLY:
                self._end(body)
            case Type.REFUSE if Flag.BUSY in frame.flags:
                self.attempt.detach()
                self.attempt.retry_at = now + BUSY_RETRY_S
            case Type.REFUSE:
                self._end(Refused(body.decode(errors="replace")))
            case _:
                self.attempt.host.counters["frames_unexpected"] += 1

    def landed(self, frame: Frame, nbytes: int, view: memoryview, now: float) -> None:
        raise AssertionError("a put has nowhere to land a chunk")

    def flush(self, now: float) -> None:
        if self.outgoing is not None and not self.attempt.finished:
            pump(self.outgoing, self.attempt.host, self, now)

    def tick(self, now: float) -> None:
        self.flush(now)
        why = self.attempt.overdue(0 if self.outgoing is None else self.outgoing.in_flight, now)
        if why is not None:
            self.fail(Unavailable(f"{self.attempt.dialled.peer.endpoint}: {why}"))

    def cut(self, now: float) -> None:
        self.attempt.detach()
        self.outgoing = None

    def fail(self, error: Exception) -> None:
        link, transfer = self.attempt.dialled.link, self.attempt.transfer
        if transfer is not None and not self.attempt.finished:
            link.refuse(transfer, "given up")
        self._end(error)

    def _end(self, answer: bytes | Exception) -> None:
        self.attempt.detach()
        if not self.attempt.finished:
            self.attempt.finished = True
            self.answer(answer)

    def _accepted(self, frame: Frame, now: float) -> None:
        limits, link = self.attempt.host.limits, self.attempt.dialled.link
        if frame.offset > self.gather.nbytes:
            self.fail(Refused("the receiver claims more bytes than there are"))
            return
        self.attempt.alive(now)
        most = min(limits.chunk_nbytes, frame.length or limits.chunk_nbytes)
        assert self.attempt.transfer is not None
        have = frame.offset
        self.outgoing = Outgoing(link.send, self.attempt.transfer, self.gather, link.pace, most, have, have)
        self._credited(self.outgoing, frame, now)

    def _working(self, now: float) -> None:
        """The peer's handler is busy, which is news only while no bytes are due."""
        if self.outgoing is None or self.outgoing.acked == self.gather.nbytes:
            self.attempt.alive(now)

    def _credited(self, outgoing: Outgoing, frame: Frame, now: float) -> None:
        outgoing.credit(frame, now)
        if outgoing.acked > self.best:
            self.best = outgoing.acked
            self.attempt.alive(now, progress=True)
            if self.progress is not None:
                call, done, total = self.progress, self.best, self.gather.nbytes
                self.attempt.host.tell(lambda: call(done, total))
        self.flush(now)


Into = Callable[[int], "memoryview | bytearray"]


@dataclass(eq=False, slots=True)
class Get:
    """Ask for an object and receive it into a buffer made once its size is known and within the limits."""

    attempt: Attempt
    header: Header
    into: Into
    answer: Callable[[memoryview | Exception], None]
    incoming: Incoming | None = None
    opened: bool = False
    making: int | None = None  # the transfer for which a buffer was asked for
    digest: bytes = b""

    def begin(self, transfer: int, now: float) -> None:
        self.attempt.transfer = transfer
        self.opened = False
        link, most = self.attempt.dialled.link, self.attempt.host.limits.chunk_nbytes_max
        link.transfers[transfer] = self
        link.send(Frame(Type.ASK, transfer, length=most), encode_header(self.header))

    def frame(self, frame: Frame, body: bytes, now: float) -> None:
        match frame.type:
            case Type.ACCEPT if not self.opened and self.making != frame.transfer:
                self._accepted(frame, body, now)
            case Type.WORKING if not self.opened:
                self.attempt.alive(now)
            case Type.WORKING:
                pass
            case Type.REFUSE if Flag.BUSY in frame.flags:
                self.attempt.detach()
                self.attempt.retry_at = now + BUSY_RETRY_S
            case Type.REFUSE:
                self._end(Refused(body.decode(errors="replace")))
            case _:
                self.attempt.host.counters["frames_unexpected"] += 1

    def landed(self, frame: Frame, nbytes: int, view: memoryview, now: float) -> None:
        incoming, link = self.incoming, self.attempt.dialled.link
        assert incoming is not None and self.attempt.transfer is not None
        landing = incoming.landed(frame, nbytes, view)
        if not settle(link, self.attempt.transfer, incoming, landing, self.attempt.host):
            self._end(Refused("too many damaged chunks"))
        elif landing is Landing.TAKEN:
            link.pace.acknowledged(nbytes, now - self.attempt.alive_at)
            self.attempt.alive(now, progress=True)
            if incoming.whole:
                self._whole()
            else:
                self.attempt.host.dirty(self)

    def flush(self, now: float) -> None:
        if self.opened and self.incoming is not None and self.attempt.transfer is not None:
            send_credit(self.attempt.dialled.link, self.attempt.transfer, self.incoming)

    def tick(self, now: float) -> None:
        flying = self.attempt.dialled.link.pace.window_nbytes(self.attempt.host.limits.chunk_nbytes_max)
        why = self.attempt.overdue(flying if self.opened else 0, now)
        if why is not None:
            self.fail(Unavailable(f"{self.attempt.dialled.peer.endpoint}: {why}"))

    def cut(self, now: float) -> None:
        self.attempt.detach()
        self.opened = False

    def fail(self, error: Exception) -> None:
        link, transfer = self.attempt.dialled.link, self.attempt.transfer
        if transfer is not None and not self.attempt.finished:
            link.refuse(transfer, "given up")
        self._end(error)

    def _end(self, answer: memoryview | Exception) -> None:
        self.attempt.detach()
        if not self.attempt.finished:
            self.attempt.finished = True
            self.answer(answer)

    def _whole(self) -> None:
        assert self.incoming is not None and self.attempt.transfer is not None
        self.attempt.dialled.link.send(Frame(Type.DONE, self.attempt.transfer, offset=self.incoming.have))
        self.attempt.host.counters["objects_fetched"] += 1
        self._end(self.incoming.buffer)

    def _accepted(self, frame: Frame, digest: bytes, now: float) -> None:
        limits = self.attempt.host.limits
        self.attempt.alive(now)
        if frame.total > limits.object_nbytes:
            self.fail(Refused(f"the object has {frame.total} bytes, more than the {limits.object_nbytes} we take"))
        elif self.incoming is None:
            self.digest = digest
            total, transfer = frame.total, self.attempt.transfer
            self.making = transfer
            self.attempt.host.ask(
                lambda: _made(self.into, total), lambda made, at: self._made(made, total, transfer, at)
            )
        elif frame.total != self.incoming.nbytes:
            self.fail(Refused("the object changed its size between two attempts"))
        else:
            if digest != self.digest or not digest:
                self.incoming.have = 0
                self.digest = digest
            self._open()

    def _made(self, made: object, total: int, transfer: int | None, now: float) -> None:
        if isinstance(made, Exception):
            self.fail(made)
            return
        if not isinstance(made, memoryview) or made.nbytes != total or (total and made.readonly):
            self.fail(ValueError(f"the buffer to fetch into is not {total} writable bytes"))
            return
        if self.attempt.finished:
            return
        self.incoming = incoming_of(self.attempt.host, made, 0, None)
        if self.attempt.transfer == transfer and transfer is not None:
            self._open()

    def _open(self) -> None:
        assert self.incoming is not None
        self.opened = True
        if self.incoming.whole:
            self._whole()
        else:
            self.flush(0.0)


async def _made(into: Into, total: int) -> memoryview:
    return as_bytes_view(into(total))
