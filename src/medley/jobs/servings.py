"""What a front asks the coordinator, and the answers: machines to serve with, news of them, notes for people.

`serve_news` is a question that waits until there is news, ten seconds at most; asking it is also how a front says that
it lives. What a front notes is kept for whoever looks, in memory, for as long as the serving lives.
"""

from __future__ import annotations

import asyncio
import contextlib
from math import isfinite
from typing import Any

import msgspec

from medley.jobs.names import new_id
from medley.protocol.errors import PeerError, UserError, did_you_mean
from medley.protocol.hosting import (
    BeginServing,
    EndServing,
    FrontAsks,
    HostingEvent,
    ReleaseMachines,
    ServingSpec,
    SuspectStage,
)
from medley.protocol.ids import NS_PER_S, JobId, NodeId
from medley.protocol.messages import Address
from medley.protocol.spec import Schedule
from medley.roles.hosting import Hosting, StageView
from medley.runtimes.addresses import check_address
from medley.runtimes.coordinator import CoordinatorHost

NEWS_S = 10.0
NOTE_NBYTES_MAX = 256 << 10
REASON_MAX = 500

Body = dict[str, Any]


class ServingDesk:
    """The coordinator's questions whose names begin with `serve`."""

    def __init__(self, host: CoordinatorHost) -> None:
        self._host = host
        self._notes: dict[JobId, msgspec.Raw] = {}
        self.questions = {
            "serve_begin": self._begin,
            "serve_news": self._news,
            "serve_suspect": self._suspect,
            "serve_release": self._release,
            "serve_note": self._note,
            "serve_end": self._end,
            "servings": self._servings,
        }

    @property
    def _live(self) -> dict[JobId, Hosting]:
        return self._host.role.servings.live

    # -- fronts -----------------------------------------------------------------------------------------------

    async def _begin(self, body: Body) -> Body:
        """{name, endpoint, key, machines, priority, weight, queue, machines_min, machines_max, memory_gib, threads}.

        With `job`, what `serve_begin` said before to the same front: it goes on with the machines that it had.
        """
        front = Address(str(body.get("endpoint", "")), str(body.get("key", "")))
        try:
            check_address(front, self._host.options.encrypt)
        except PeerError as error:
            raise UserError(f"a front end must say where it listens: {error}") from None
        spec = _spec(body)
        job = str(body.get("job", "")) or new_id(spec.name)
        if job in self._host.role.runs:
            raise UserError(f"{job} is a training job")
        if not body.get("job"):
            self._check_machines(spec)
        await self._done(BeginServing(job, front, spec, self._host.clock.wall_ns()))
        if job not in self._live:
            raise UserError("this coordinator serves as much as it may already; end another serving first")
        return {"job": job}

    def _check_machines(self, spec: ServingSpec) -> None:
        pool = self._host.role.pool
        for name in spec.machines:
            if name not in pool:
                known = did_you_mean(name, pool) if pool else "none has joined"
                raise UserError(f"there is no machine '{name}'; {known}")

    async def _news(self, body: Body) -> Body:
        """Machines that may be used now, and who is gone since the news `after`; `known` False: begin again."""
        job, after = str(body.get("job", "")), int(body.get("after", 0))
        self._host.post(FrontAsks(job))
        hosting = self._live.get(job)
        if hosting is None or hosting.front is None:
            return _nothing(self._host.role.servings.ended.get(job, ""))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(NEWS_S):
                while hosting.number <= after and not hosting.ended:
                    await self._host.settled()
        self._host.post(FrontAsks(job))
        return {
            "known": True,
            "number": hosting.number,
            "machines": [self._machine(s) for s in hosting.stages.values() if s.since],
            "gone": [{"name": d.node, "reason": d.reason} for d in hosting.gone if d.number > after],
            "ended": hosting.ended,
        }

    def _machine(self, stage: StageView) -> Body:
        assert stage.address is not None, "only a machine whose engine is up is used"
        capability = self._host.role.pool[stage.node].capability
        return {
            "name": stage.node,
            "endpoint": stage.address.endpoint,
            "key": stage.address.key,
            "memory_bytes": capability.memory_bytes,
            "cores": capability.cores,
            "since": stage.since,
            "leaving": stage.leaving,
        }

    async def _suspect(self, body: Body) -> Body:
        hosting = self._find(body)
        node = self._stage(hosting, str(body.get("machine", "")))
        reason = str(body.get("reason", "") or "it does not answer")[:REASON_MAX]
        await self._done(SuspectStage(hosting.job, node, int(body.get("since", 0)), reason))
        return {}

    async def _release(self, body: Body) -> Body:
        """`machines`: all that this serving has no use for; one that is not named any more may come back to it."""
        hosting = self._find(body)
        await self._done(ReleaseMachines(hosting.job, frozenset(_names(body))))
        return {}

    async def _note(self, body: Body) -> Body:
        hosting = self._find(body)
        if not isinstance(body.get("note"), dict):
            raise UserError("a note is a JSON object")
        note = msgspec.json.encode(body["note"])
        if len(note) > NOTE_NBYTES_MAX:
            raise UserError(f"a note has at most {NOTE_NBYTES_MAX // 1024} KiB, this one {len(note) // 1024}")
        self._notes = {job: kept for job, kept in self._notes.items() if job in self._live}
        self._notes[hosting.job] = msgspec.Raw(note)
        return {}

    async def _end(self, body: Body) -> Body:
        reason = str(body.get("reason", "") or "its front end stopped")[:REASON_MAX]
        await self._done(EndServing(self._find(body).job, reason))
        return {}

    async def _done(self, event: HostingEvent) -> None:
        """Until the role has acted on it: the batch under way may have begun without it, the next has it."""
        self._host.post(event)
        await self._host.settled()
        await self._host.settled()

    def _find(self, body: Body) -> Hosting:
        job = str(body.get("job", ""))
        if job in self._live:
            return self._live[job]
        if job in self._host.role.servings.ended:
            raise UserError(f"{job} is over: {self._host.role.servings.ended[job]}")
        raise UserError(f"nothing called '{job}' is served here; {did_you_mean(job, self._live)}")

    def _stage(self, hosting: Hosting, name: str) -> NodeId:
        if name not in hosting.stages:
            raise UserError(f"{hosting.job} has no machine '{name}'; {did_you_mean(name, hosting.stages)}")
        return name

    # -- people -----------------------------------------------------------------------------------------------

    async def _servings(self, body: Body) -> Body:
        return {"servings": self.noted()}

    def noted(self) -> list[Body]:
        """Every serving with what its front noted: a JSON object, or None before the first."""
        return [{**self.describe(hosting), "note": self._notes.get(hosting.job)} for hosting in self._live.values()]

    def describe(self, hosting: Hosting) -> Body:
        """Without its note, which may be long."""
        now_ns = self._host.clock.now_ns()
        return {
            "job": hosting.job,
            "name": hosting.spec.name,
            "endpoint": hosting.front.endpoint if hosting.front is not None else "",
            "priority": hosting.spec.schedule.priority,
            "machines": [{"name": s.node, "state": state_of(s), "leaving": s.leaving} for s in hosting.stages.values()],
            "reason": self._host.role.why.get(hosting.job, ""),
            "since_s": (now_ns - hosting.since_ns) / NS_PER_S,
            "heard_s_ago": (now_ns - hosting.heard_ns) / NS_PER_S,
        }


def state_of(stage: StageView) -> str:
    """A word or two for people."""
    if stage.leaving:
        return "leaving"
    if stage.since:
        return "serves"
    return "being admitted" if stage.address is not None else "starting"


def _nothing(ended: str) -> Body:
    return {"known": bool(ended), "number": 0, "machines": [], "gone": [], "ended": ended}


def _spec(body: Body) -> ServingSpec:
    """Raises UserError for what a serving cannot be."""
    try:
        schedule = Schedule(
            priority=int(body.get("priority", 0)),
            weight=float(body.get("weight", 1.0)),
            queue=str(body.get("queue", "")),
            workers_min=int(body.get("machines_min", 1)),
            workers_max=int(body.get("machines_max", 0)),
            memory_gib=float(body.get("memory_gib", 0.0)),
            preemptible=bool(body.get("preemptible", True)),
        )
        threads = int(body.get("threads", 0))
    except (TypeError, ValueError) as error:
        raise UserError(f"a serving cannot be so: {error}") from None
    if not (isfinite(schedule.weight) and isfinite(schedule.memory_gib)):
        raise UserError("a serving's weight and GiB are finite numbers")
    if not schedule.weight > 0 or min(schedule.workers_min, schedule.workers_max, threads, schedule.memory_gib) < 0:
        raise UserError("a serving's weight is above 0, and its numbers of machines, threads and GiB are not negative")
    return ServingSpec(str(body.get("name", "") or "serving"), tuple(_names(body)), threads, schedule)


def _names(body: Body) -> list[NodeId]:
    found = body.get("machines", [])
    if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
        raise UserError("'machines' is a list of names")
    return found
