"""A pipeline stage's engine process: the role `Stage` beside the arithmetic, posts in and posts out.

Three threads beside the plane's own: this event loop (the pipe to the parent, the status once a second), one that
computes and is the role's, one that loads. A fault in any of them ends the process: the front knows the way back.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections import Counter

import psutil

from medley.concurrency import TaskGroup
from medley.engines.stage_threads import use_threads
from medley.observe.logs import logger
from medley.protocol.engine import Command, Opened, OpenStage, PeersKnown, SetPeers
from medley.protocol.messages import Address
from medley.protocol.stages.events import Met
from medley.protocol.stages.words import StageStatus
from medley.roles.stage import Stage
from medley.runtimes.children.environment import compute_factor, encrypted, host
from medley.runtimes.children.plane import Admission, NoObjects, open_plane
from medley.runtimes.children.stage_computing import Computer
from medley.runtimes.children.stage_inbox import Inbox, Posted, Sender
from medley.runtimes.children.stage_loading import Loader
from medley.runtimes.children.stage_meter import Meter
from medley.runtimes.children.stage_weights import RemoteWeights
from medley.runtimes.clock import SystemClock
from medley.runtimes.pipe import ChildLink
from medley.transports.tensors.plane import TensorPlane

BEAT_S = 0.25  # a front waits for whoever hangs, so its parent must notice soon
STATUS_S = 1.0


class StageHost:
    """The event loop's part: the parent's commands, and what is said once a second."""

    def __init__(self, link: ChildLink, opened: OpenStage) -> None:
        self._link, self._opened = link, opened
        self._clock, self._process = SystemClock(), psutil.Process()
        self._log = logger("stage", node=opened.node)
        self._admission = Admission()
        self._front = Address("", "")
        self._meter, self._inbox = Meter(), Inbox()
        self._send = Sender(self._meter.counters)
        self._stage = Stage(opened.node)
        self._weights = RemoteWeights(opened.job)
        self._loader = Loader(self._inbox, self._weights.tensors, compute_factor())
        self._computer = Computer(
            self._stage, self._inbox, self._send, self._loader, self._meter, factor=compute_factor()
        )

    async def run(self) -> None:
        """Open the plane, then execute commands for ever."""
        posted = Posted(self._inbox, self._send, self._busy_ns, self._meter.counters)
        plane, address = await open_plane(host(), 0, encrypted(), NoObjects(), self._admission, posted=posted)
        self._send.plane, self._computer.copying.source = plane, address
        self._weights.reached(plane, asyncio.get_running_loop())
        use_threads(self._opened.threads)
        threading.excepthook = _end
        for name, work in (("compute", self._computer.run), ("load", self._loader.run)):
            threading.Thread(target=work, name=name, daemon=True).start()
        self._link.send(Opened(address))
        async with TaskGroup() as tasks:
            tasks.create_task(self._tell())
            while True:
                self._execute(await self._link.commands.get(), plane)

    def _execute(self, command: Command, plane: TensorPlane) -> None:
        match command:
            case SetPeers(number, keys, front):
                self._admission.admit(keys, plane)
                self._front = self._weights.front = front
                self._inbox.put(Met(front))
                self._link.send(PeersKnown(number))
            case _:
                raise AssertionError(f"not a command for a stage: {command}")

    def _busy_ns(self) -> int:
        return self._meter.busy_ns(self._clock.now_ns())

    # -- once a second ------------------------------------------------------------------------------------------------

    async def _tell(self) -> None:
        dropped: Counter[str] = Counter()
        while True:
            await self._clock.sleep(STATUS_S)
            if self._front.endpoint:
                self._send.post(self._front, self._status())
            if self._meter.counters != dropped:
                dropped = Counter(self._meter.counters)
                self._log.warning("dropped so far", **dropped)

    def _status(self) -> StageStatus:
        meter, engine = self._meter, self._loader.engine
        return StageStatus(
            node=self._opened.node,
            generation=self._stage.layout.generation,
            loaded=() if engine is None else engine.loaded,
            pass_s=meter.pass_s,
            busy=meter.busy(self._clock.now_ns()),
            queue=meter.queue,
            requests=meter.requests,
            kv_nbytes=meter.kv_nbytes,
            memory_nbytes=int(self._process.memory_info().rss),
            shadow_nbytes=meter.shadow_nbytes,
        )


def _end(fault: threading.ExceptHookArgs) -> None:
    """A thread that failed takes the process with it."""
    sys.__excepthook__(fault.exc_type, fault.exc_value or fault.exc_type(), fault.exc_traceback)
    os._exit(1)


async def serve() -> None:
    link = ChildLink(BEAT_S)
    first = await link.commands.get()
    assert isinstance(first, OpenStage)
    await StageHost(link, first).run()
