"""Transfers that peers open with us: a Reception for each OFFER, a Supply for each ASK.

A Reception outlives its connection: cut off, it is parked with its buffer and taken up by the next OFFER of
the same header from the same key. A Supply does not; the asker knows what it has and asks again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from medley.transports.tensors.contract import Accept, Already, Keeper, Refuse, Source
from medley.transports.tensors.flow import Gather, Incoming, Landing, Outgoing, as_bytes_view
from medley.transports.tensors.links import Link
from medley.transports.tensors.transfers import Host, incoming_of, pump, send_credit, settle
from medley.transports.tensors.wire import BODY_NBYTES_MAX, Frame, Header, Type


@dataclass(eq=False, slots=True)
class Reception:
    """One object being received: asked of the handler, flowing, or handed to the handler whole."""

    host: Host
    handler: Keeper
    key: bytes
    header: Header
    forget: Callable[[Reception], None]
    link: Link | None = None
    transfer: int = 0
    incoming: Incoming | None = None
    accepted: Accept | None = None
    finishing: bool = False
    gone: bool = False
    since: float = 0.0
    heard_at: float = 0.0

    def open(self, now: float) -> None:
        """Ask the handler whether the object is welcome."""
        self.since = now
        self.host.ask(lambda: self.handler.offer(self.key, self.header), self._answered)

    def attach(self, link: Link, transfer: int, now: float) -> None:
        """Talk over `link` from now on: the first OFFER, or a later one after the connection was lost."""
        if self.link is not None:
            self.link.transfers.pop(self.transfer, None)
        self.link, self.transfer, self.heard_at = link, transfer, now
        link.transfers[transfer] = self
        if self.incoming is not None:
            if self.incoming.have:
                self.host.counters["resumed"] += 1
            self._accept()

    def frame(self, frame: Frame, body: bytes, now: float) -> None:
        self.heard_at = now
        if frame.type is Type.REFUSE:
            self.cut(now)
        else:
            self.host.counters["frames_unexpected"] += 1

    def landed(self, frame: Frame, nbytes: int, view: memoryview, now: float) -> None:
        incoming, link = self.incoming, self.link
        assert incoming is not None and link is not None
        self.heard_at = now
        landing = incoming.landed(frame, nbytes, view)
        if not settle(link, self.transfer, incoming, landing, self.host):
            self.drop()
        elif incoming.whole:
            self._finish()
        elif landing is Landing.TAKEN:
            self.host.dirty(self)

    def flush(self, now: float) -> None:
        if self.link is not None and self.incoming is not None and not self.finishing:
            send_credit(self.link, self.transfer, self.incoming)

    def tick(self, now: float) -> None:
        """Say that work goes on, which also shows whether the connection still stands."""
        limits = self.host.limits
        if self.link is None:
            return
        working = self.incoming is None or self.finishing
        if not working and now - self.heard_at > limits.silence_s:
            self.cut(now)
        elif working or now - self.heard_at > 1.0:
            self.link.send(Frame(Type.WORKING, self.transfer))

    def cut(self, now: float) -> None:
        """The connection is gone: keep what we have for the next OFFER."""
        if self.link is not None:
            self.link.transfers.pop(self.transfer, None)
        self.link = None
        self.since = now
        if self.incoming is not None and not self.finishing and self.incoming.have == 0:
            self.drop()

    def drop(self) -> None:
        """Give the object up and let the handler have its buffer back."""
        if self.gone:
            return
        self.gone = True
        if self.link is not None:
            self.link.transfers.pop(self.transfer, None)
        self.link = None
        self.forget(self)
        if self.accepted is not None and self.accepted.dropped is not None and not self.finishing:
            self.host.tell(self.accepted.dropped)

    def _answered(self, answer: Any, now: float) -> None:
        match answer:
            case Accept() if not self.gone:
                self._take(answer, now)
            case Accept():
                if answer.dropped is not None:
                    self.host.tell(answer.dropped)
            case Already():
                self._reply(answer.body)
            case Refuse():
                self._refuse(answer.reason, answer.busy)
            case _:
                self._refuse("the receiver failed to answer", False)

    def _take(self, answer: Accept, now: float) -> None:
        self.accepted = answer
        try:
            view = as_bytes_view(answer.buffer)
        except (ValueError, TypeError):
            view = memoryview(b"")
        fits = view.nbytes == self.header.nbytes and 0 <= answer.have <= view.nbytes
        if not fits or (view.nbytes and view.readonly):
            self.host.counters["handler_errors"] += 1
            self._refuse("the receiver gave an unfit buffer", False)
            return
        self.heard_at = now
        self.incoming = incoming_of(self.host, view, answer.have, answer.journal)
        if self.link is not None:
            self._accept()

    def _accept(self) -> None:
        assert self.incoming is not None and self.link is not None
        incoming = self.incoming
        most = self.host.limits.chunk_nbytes_max
        self.link.send(Frame(Type.ACCEPT, self.transfer, offset=incoming.have, total=incoming.grant(), length=most))
        if incoming.whole:
            self._finish()

    def _finish(self) -> None:
        assert self.incoming is not None and self.link is not None
        self.link.send(Frame(Type.DONE, self.transfer, offset=self.incoming.have))
        if self.finishing:
            return
        self.finishing = True
        view = self.incoming.buffer
        self.host.counters["objects_received"] += 1
        self.host.ask(lambda: self.handler.received(self.key, self.header, view), self._handed_over)

    def _handed_over(self, answer: Any, now: float) -> None:
        if isinstance(answer, (bytes, bytearray)) and len(answer) <= BODY_NBYTES_MAX:
            self._reply(bytes(answer))
        else:
            self._refuse("the receiver failed to take the object", False)

    def _reply(self, body: bytes) -> None:
        if self.link is not None:
            self.link.send(Frame(Type.REPLY, self.transfer), body)
        self.drop()

    def _refuse(self, reason: str, busy: bool) -> None:
        if self.link is not None:
            self.link.refuse(self.transfer, reason, busy=busy)
        self.drop()


@dataclass(eq=False, slots=True)
class Supply:
    """One object being served to the peer that asked for it."""

    host: Host
    handler: Keeper
    header: Header
    link: Link
    transfer: int
    chunk_nbytes: int
    heard_at: float
    incoming: Incoming | None = None
    source: Source | None = None
    outgoing: Outgoing | None = None
    gone: bool = field(default=False)

    def open(self, now: float) -> None:
        self.link.transfers[self.transfer] = self
        self.host.ask(lambda: self.handler.asked(self.link.key, self.header), self._answered)

    def frame(self, frame: Frame, body: bytes, now: float) -> None:
        self.heard_at = now
        match frame.type:
            case Type.CREDIT if self.source is not None:
                self._credit(frame, now)
            case Type.DONE:
                self.host.counters["objects_served"] += 1
                self.cut(now)
            case Type.REFUSE:
                self.cut(now)
            case _:
                self.host.counters["frames_unexpected"] += 1

    def landed(self, frame: Frame, nbytes: int, view: memoryview, now: float) -> None:
        raise AssertionError("a supply has nowhere to land a chunk")

    def flush(self, now: float) -> None:
        if self.outgoing is not None and not self.gone:
            pump(self.outgoing, self.host, self, now)

    def tick(self, now: float) -> None:
        if self.source is None:
            self.link.send(Frame(Type.WORKING, self.transfer))
            return
        self.flush(now)
        silent = now - self.heard_at
        if silent > self.host.limits.silence_s:
            self.link.refuse(self.transfer, "the asker fell silent", busy=True)
            self.cut(now)
        elif silent > 1.0:
            self.link.send(Frame(Type.WORKING, self.transfer))

    def cut(self, now: float) -> None:
        if self.gone:
            return
        self.gone = True
        self.link.transfers.pop(self.transfer, None)
        self._release(self.source)

    def _credit(self, frame: Frame, now: float) -> None:
        if self.outgoing is None:
            assert self.source is not None
            gather = Gather(self.source.buffers)
            if frame.offset > gather.nbytes:
                return
            self.outgoing = Outgoing(
                self.link.send,
                self.transfer,
                gather,
                self.link.pace,
                self.chunk_nbytes,
                frame.offset,
                frame.offset,
            )
        self.outgoing.credit(frame, now)
        self.flush(now)

    def _answered(self, answer: Any, now: float) -> None:
        match answer:
            case Source() if self.gone:
                self._release(answer)
            case Source():
                self._serve(answer, now)
            case Refuse():
                self._refuse(answer.reason, answer.busy, now)
            case _:
                self._refuse("the source failed to answer", False, now)

    def _serve(self, source: Source, now: float) -> None:
        self.source = source
        self.heard_at = now
        try:
            nbytes = Gather(source.buffers).nbytes
        except (ValueError, TypeError):
            nbytes = -1
        if nbytes != source.nbytes or len(source.digest) not in (0, 16):
            self.host.counters["handler_errors"] += 1
            self._refuse("the source gave unfit buffers", False, now)
        else:
            self.link.send(Frame(Type.ACCEPT, self.transfer, total=nbytes), source.digest)

    def _refuse(self, reason: str, busy: bool, now: float) -> None:
        self.link.refuse(self.transfer, reason, busy=busy)
        self.cut(now)

    def _release(self, source: Source | None) -> None:
        if source is not None and source.release is not None:
            self.host.tell(source.release)
