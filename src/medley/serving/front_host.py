"""Hosts the front role: its tensor sockets, its weights to hand out, its news from the coordinator, its log.

Promises: events reach the role one at a time, on one event loop; a coordinator that restarts costs no answer that
needs no new machine. Leaves to others: what to decide (`roles.front`), text (`answers`), HTTP (`api`).
"""

from __future__ import annotations

import array
import asyncio
import base64
import sys
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, assert_never

from medley.concurrency import TaskGroup
from medley.observe.logs import logger
from medley.protocol.errors import FrameError, MedleyError, Unavailable
from medley.protocol.ids import NS_PER_S, NodeId
from medley.protocol.messages import Address
from medley.protocol.stages.events import (
    Drain,
    Emit,
    Explain,
    Fail,
    FrontEffect,
    FrontEvent,
    Guess,
    Heard,
    MachineDown,
    MachineUp,
    Post,
    Reject,
    Suspect,
    Tick,
)
from medley.protocol.stages.words import Pass, pack, unpack
from medley.roles.front.front import Front
from medley.runtimes.children.plane import Admission, open_plane, peer_of, ways_by
from medley.runtimes.clock import SystemClock
from medley.serving.guessing import Guessing
from medley.serving.offers import Offer
from medley.serving.shown import shown
from medley.transports.control.operator import OperatorClient
from medley.transports.tensors.contract import Keeper, Peer
from medley.transports.tensors.plane import TensorPlane
from medley.transports.tensors.ways import Ways
from medley.transports.tunnel.gate import Gate
from medley.transports.tunnel.line import Line

TICK_S = 0.05
NOTE_S = 1.0
NEWS_S = 10.0  # the coordinator keeps a question for news so long
RETRY_S = 0.5
DECISIONS = 200  # that people can still read
EVENTS_MAX = 65_536  # that wait to be handled; far above what stages say in a second

Tokens = Callable[[Emit | Fail], list[FrontEvent]]


@dataclass(frozen=True, slots=True)
class Place:
    """Where the front listens for stages, and which machines it asks for."""

    name: str
    host: str
    encrypt: bool
    machines: tuple[str, ...] = ()
    priority: int = 0
    threads: int = 0  # of each stage; 0: as each machine is set up
    local: bool = False  # all stages are processes here


class FrontHost:
    """`run` on one event loop; `post` from there. `operator` is used from worker threads."""

    def __init__(
        self,
        place: Place,
        make: Callable[[Address], Front],
        keeper: Keeper,
        operator: Callable[[], OperatorClient],
        told: Tokens,
        guessing: Guessing | None = None,
    ) -> None:
        self._guessing = guessing
        self._place, self._make, self._keeper, self._told = place, make, keeper, told
        self._operator = operator
        self._clock = SystemClock()
        self._log = logger("front", serving=place.name)
        self._names: dict[bytes, NodeId] = {}
        self._peers: dict[Address, Peer] = {}
        self._machines: dict[NodeId, Address] = {}
        self._leaving: set[NodeId] = set()
        self._since: dict[NodeId, int] = {}  # which engine of each
        self._loop: asyncio.AbstractEventLoop | None = None
        self._admission = Admission()
        self._events: asyncio.Queue[FrontEvent] = asyncio.Queue()
        self.decisions: deque[dict[str, Any]] = deque(maxlen=DECISIONS)
        self.front: Front | None = None
        self.plane: TensorPlane | None = None
        self.job = ""
        self.address = Address("", "")
        self.offer: Offer | None = None  # where people ask, once somebody said so
        self._last_emitted = (0, 0)

    # -- life ---------------------------------------------------------------------------------------------------------

    async def run(self, ready: Callable[[], None]) -> None:
        """Until cancelled. Raises UserError for a coordinator that refuses."""
        self._loop = asyncio.get_running_loop()
        with self._operator() as asking, self._operator() as hearing:
            async with TaskGroup() as tasks:
                await self._open(asking, tasks)
                if self._guessing is not None:
                    self._guessing.begin(lambda event: self._elsewhere(self.post, event))
                try:
                    await self._begin(asking)
                    async with TaskGroup() as working:
                        working.create_task(self._consume(asking))
                        working.create_task(self._news(hearing))
                        working.create_task(self._tick())
                        working.create_task(self._note(asking))
                        ready()
                finally:
                    assert self.plane is not None
                    await self.plane.close()
                    if self._guessing is not None:
                        await asyncio.to_thread(self._guessing.close)

    async def _open(self, operator: OperatorClient, tasks: asyncio.TaskGroup) -> None:
        """The plane, and unless all stages are here a gate: some may be where nobody can dial in."""
        place = self._place
        by = Ways("direct")
        if not place.local:
            gate, stands = Gate(Line(operator.address, lambda: operator.identity), lambda name: None), asyncio.Event()
            tasks.create_task(gate.run(stands.set))
            await stands.wait()
            by = ways_by("auto", gate.proxy, gate.secret)
        self.plane, self.address = await open_plane(
            place.host, 0, place.encrypt, self._keeper, self._admission, posted=self._posted, by=by
        )
        self.front = self._make(self.address)

    def post(self, event: FrontEvent) -> None:
        self._events.put_nowait(event)

    async def end(self) -> None:
        """Tell the coordinator that the machines are free again."""
        with self._operator() as operator:
            await asyncio.to_thread(operator.ask, "serve_end", {"job": self.job})

    async def _begin(self, operator: OperatorClient) -> None:
        wanted = {
            "name": self._place.name,
            "endpoint": self.address.endpoint,
            "key": self.address.key,
            "machines": list(self._place.machines),
            "priority": self._place.priority,
            "threads": self._place.threads,
        }
        if self.job:
            wanted["job"] = self.job
        self.job = (await asyncio.to_thread(operator.ask, "serve_begin", wanted))["job"]

    # -- events and effects -------------------------------------------------------------------------------------------

    async def _consume(self, operator: OperatorClient) -> None:
        assert self.front is not None
        async with TaskGroup() as tasks:
            while True:
                event = await self._events.get()
                for effect in self.front.handle(event, self._clock.now_ns()):
                    self._execute(effect, operator, tasks)

    def _execute(self, effect: FrontEffect, operator: OperatorClient, tasks: asyncio.TaskGroup) -> None:
        match effect:
            case Post():
                self._send(effect)
            case Emit() | Fail():
                for event in self._told(effect):
                    self.post(event)
            case Suspect(node, reason):
                self._log.warning("suspected", node=node, reason=reason)
                tasks.create_task(self._suspect(operator, node, reason))
            case Guess():
                assert self._guessing is not None
                self._guessing.guess(effect)
            case Explain(subject, sentence):
                self.explain(subject, sentence)
            case Reject(peer, reason):
                self._log.warning("refused", peer=peer, reason=reason)
            case _:
                assert_never(effect)

    def _send(self, effect: Post) -> None:
        assert self.plane is not None
        body = [] if effect.body is None else [_u32(effect.body)] if isinstance(effect.word, Pass) else [effect.body]
        peer = self._peers.get(effect.to)
        if peer is None:
            peer = self._peers[effect.to] = peer_of(effect.to)
        if not self.plane.post(peer, [pack(effect.word), *body]):
            self._log.warning("not sent", word=type(effect.word).__name__, to=effect.to.endpoint)

    def explain(self, subject: str, sentence: str) -> None:
        self._log.info("because", subject=subject, text=sentence)
        self.decisions.append({"wall_s": self._clock.wall_ns() / NS_PER_S, "subject": subject, "text": sentence})

    async def _suspect(self, operator: OperatorClient, node: NodeId, reason: str) -> None:
        self._machines.pop(node, None)
        question = {"job": self.job, "machine": node, "since": self._since.get(node, 0), "reason": reason}
        try:
            await asyncio.to_thread(operator.ask, "serve_suspect", question)
        except MedleyError as error:
            self._log.warning("the coordinator was not told of a suspicion", node=node, reason=str(error))

    def _posted(self, key: bytes, payload: memoryview) -> None:
        """On the plane's own thread."""
        try:
            word, _ = unpack(payload)
        except FrameError as error:
            self._log.warning("refused a post", reason=str(error))
            return
        self._elsewhere(self._hear, Heard(self._names.get(key, ""), word))  # type: ignore[arg-type]

    def _elsewhere(self, then: Callable[[Any], None], event: FrontEvent) -> None:
        """Something happened on another thread."""
        assert self._loop is not None
        self._loop.call_soon_threadsafe(then, event)

    def _hear(self, event: Heard) -> None:
        """What a stage says beyond all measure is lost, as posts may be."""
        if self._events.qsize() < EVENTS_MAX:
            self.post(event)

    # -- time and news ------------------------------------------------------------------------------------------------

    async def _tick(self) -> None:
        while True:
            await self._clock.sleep(TICK_S)
            self.post(Tick())

    async def _news(self, operator: OperatorClient) -> None:
        """Which machines there are; asked for ever, also of a coordinator that is being restarted."""
        after = 0
        while True:
            try:
                question = {"job": self.job, "after": after}
                news = await asyncio.to_thread(operator.ask, "serve_news", question, 2 * NEWS_S)
            except Unavailable:
                await self._clock.sleep(RETRY_S)
                continue
            after = int(news["number"])
            if news["known"] and not news["ended"]:
                self._heard_news(news)
                continue
            self.explain("coordinator", f"{news['ended'] or 'it knows nothing of this serving'}: it begins again")
            after = 0
            await self._clock.sleep(RETRY_S)
            await self._again(operator)

    async def _again(self, operator: OperatorClient) -> None:
        try:
            await self._begin(operator)
        except MedleyError as error:
            self._log.warning("not begun", reason=str(error))

    def _heard_news(self, news: dict[str, Any]) -> None:
        machines = {m["name"]: Address(m["endpoint"], m["key"]) for m in news["machines"]}
        why = {gone["name"]: gone["reason"] for gone in news.get("gone", ())}
        assert self.plane is not None
        self._admission.admit(tuple(a.key for a in machines.values() if a.key), self.plane)
        self._names = {base64.b64decode(a.key): name for name, a in machines.items() if a.key}
        for name in set(self._machines) - set(machines):
            self.post(MachineDown(name, why.get(name, "the coordinator does not name it any more")))
        for name, address in machines.items():
            if self._machines.get(name) != address:
                self.post(MachineUp(name, address))
        for machine in news["machines"]:
            if machine["leaving"] and machine["name"] not in self._leaving:
                self._leaving.add(machine["name"])
                self.post(Drain(machine["name"]))
        self._leaving &= set(machines)
        self._since = {machine["name"]: int(machine["since"]) for machine in news["machines"]}
        self._machines = machines
        self._peers = {address: peer for address, peer in self._peers.items() if address in machines.values()}

    async def _note(self, operator: OperatorClient) -> None:
        """What people see on the page and with `--watch`."""
        while True:
            await self._clock.sleep(NOTE_S)
            try:
                await asyncio.to_thread(operator.ask, "serve_note", {"job": self.job, "note": self.note()})
            except MedleyError as error:
                self._log.debug("no note kept", reason=str(error))

    def note(self) -> dict[str, Any]:
        """The pipeline as it is: a plain JSON object."""
        assert self.front is not None
        now_ns = self._clock.now_ns()
        emitted = sum(p.emitted for p in self.front.pipelines)
        seconds = (now_ns - self._last_emitted[0]) / NS_PER_S
        rate = (emitted - self._last_emitted[1]) / seconds if self._last_emitted[0] and seconds > 0 else 0.0
        self._last_emitted = (now_ns, emitted)
        offer = {"offer": self.offer.noted} if self.offer is not None else {}
        return {**shown(self.front, rate), **offer, "decisions": list(self.decisions)[-20:]}


def _u32(tokens: tuple[int, ...]) -> bytes:
    """Little-endian, whatever the machine."""
    values = array.array("I", tokens)
    if sys.byteorder == "big":
        values.byteswap()
    return values.tobytes()
