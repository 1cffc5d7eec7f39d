"""What feeds the page of a running coordinator: its own state and chronicle, and a serving process on
demand.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from medley.concurrency import TaskGroup
from medley.dashboard.answers import Answers
from medley.dashboard.feed import Broadcast, Events
from medley.dashboard.relay import relay
from medley.dashboard.routes import OPEN_PATHS, make_routes
from medley.dashboard.served import askable, served
from medley.jobs.operator import Operator
from medley.observe.metrics import CONTENT_TYPE
from medley.protocol.ids import NS_PER_MS
from medley.protocol.version import __version__
from medley.runtimes.coordinator import CoordinatorHost
from medley.serving.guard import Guard
from medley.serving.server import bind

REFRESH_S = 1.0
CURVE_POINTS = 2_000
STATES = {"queued": "waiting", "preparing": "waiting", "finishing": "running", "done": "finished"}


class PoolFeed:
    """Implements `dashboard.feed.Feed` over a coordinator."""

    def __init__(self, host: CoordinatorHost, operator: Operator, answers: Answers) -> None:
        self._host = host
        self._operator = operator
        self._answers = answers
        self._broadcast = Broadcast()
        self._models: list[str] = []
        host.chronicle.listen(self._noted)

    def snapshot(self) -> Mapping[str, Any]:
        host = self._host
        server = host.server
        jobs = [self._operator.describe(run) for run in host.role.runs.values()]
        return {
            "now_ms": host.clock.wall_ns() // NS_PER_MS,
            "cluster": {
                "name": "medley",
                "address": server.control_address if server else "",
                "version": __version__,
            },
            "nodes": self._nodes(),
            "jobs": [_job(job) for job in jobs],
            "curves": {job["job"]: self._curves(job["job"]) for job in jobs},
            "decisions": [_decision(d) for d in host.chronicle.decisions(limit=100)],
            "models": self._askable_models(),
            "servings": [served(serving) for serving in self._servings()],
        }

    def events(self) -> Events:
        return self._broadcast.subscribe()

    def ask(self, model: str, messages: Sequence[Mapping[str, str]]) -> AsyncIterator[str]:
        """A model that is served now answers where it is; one that a job trained gets a process of its own."""
        for offer in askable(self._servings()):
            if offer.name == model:
                return relay(offer.url, model, messages)
        return self._answers.ask(model, messages)

    async def refresh(self) -> None:
        """Machines, jobs and servings once a second; points and decisions as they happen."""
        while True:
            await self._host.clock.sleep(REFRESH_S)
            if not self._broadcast.clients:
                continue
            for node in self._nodes():
                self._broadcast.publish({"kind": "node", "node": node})
            for run in self._host.role.runs.values():
                self._broadcast.publish({"kind": "job", "job": _job(self._operator.describe(run))})
            found = [served(serving) for serving in self._servings()]
            self._broadcast.publish({"kind": "servings", "servings": found})
            self._publish_models()

    def _servings(self) -> list[dict[str, Any]]:
        return [
            {**serving, "note": msgspec.json.decode(serving["note"]) if serving["note"] is not None else None}
            for serving in self._operator.servings.noted()
        ]

    def _askable_models(self) -> list[str]:
        """What is served first, then what jobs have trained."""
        served_here = [offer.name for offer in askable(self._servings())]
        jobs = [self._operator.describe(run) for run in self._host.role.runs.values()]
        return list(dict.fromkeys([*served_here, *(job["job"] for job in jobs if job["export"])]))

    def _publish_models(self) -> None:
        models = self._askable_models()
        if models != self._models:
            self._models = models
            self._broadcast.publish({"kind": "models", "models": models})

    def _nodes(self) -> list[dict[str, Any]]:
        wall_ms = self._host.clock.wall_ns() // NS_PER_MS
        nodes = [self._operator.describe_node(v) for v in self._host.role.pool.values()]
        return [_node(n, wall_ms) for n in nodes]

    def _curves(self, job: str) -> dict[str, list[list[float]]]:
        commits = self._host.chronicle.curve(job, "commit")
        heldout = self._host.chronicle.curve(job, "heldout")
        thin = max(1, len(commits) // CURVE_POINTS)
        kept = commits[::thin]
        rates = [
            [b["elapsed_s"], _rate(a, b)]
            for a, b in zip(commits[:-1:thin], commits[1::thin], strict=False)
            if b["elapsed_s"] > a["elapsed_s"]
        ]
        return {
            "loss": [[c["elapsed_s"], c["loss"]] for c in kept],
            "heldout_loss": [[h["elapsed_s"], h["loss"]] for h in heldout],
            "tokens_per_s": rates,
        }

    def _noted(self, entry: Mapping[str, Any]) -> None:
        match entry["kind"]:
            case "decision":
                self._broadcast.publish({"kind": "decision", "decision": _decision(entry)})
            case "commit":
                self._points(entry, "loss", entry["loss"])
                recent = self._host.chronicle.curve(entry["job"], "commit")[-2:]
                if len(recent) == 2 and recent[1]["elapsed_s"] > recent[0]["elapsed_s"]:
                    self._points(entry, "tokens_per_s", _rate(*recent))
            case "heldout":
                self._points(entry, "heldout_loss", entry["loss"])
            case "state":
                self._publish_models()

    def _points(self, entry: Mapping[str, Any], curve: str, value: float) -> None:
        points = [[entry["elapsed_s"], value]]
        self._broadcast.publish({"kind": "points", "job": entry["job"], "curve": curve, "points": points})


def _rate(a: Mapping[str, Any], b: Mapping[str, Any]) -> float:
    return float(b["tokens"] / (b["elapsed_s"] - a["elapsed_s"]))


def _node(node: Mapping[str, Any], wall_ms: int) -> dict[str, Any]:
    return {
        "id": node["node"],
        "name": node["node"],
        "roles": node["roles"],
        "state": _state(node),
        "tokens_per_s": node["tokens_per_s"],
        "seen_ms": wall_ms - int(node["heard_s_ago"] * 1000),
        "reason": node["reason"],
    }


def _state(node: Mapping[str, Any]) -> str:
    if not node["connected"]:
        return "lost"
    if node["leases"] or node["shards"]:
        return "working"
    return "serving" if node["serves"] else "idle"


def _job(job: Mapping[str, Any]) -> dict[str, Any]:
    progress = job["samples"] / job["total"] if job["total"] else 0.0
    left_s = job["elapsed_s"] / progress * (1 - progress) if 0 < progress < 1 else None
    return {
        "id": job["job"],
        "name": job["name"],
        "state": STATES.get(job["state"], job["state"]),
        "progress": progress,
        "commits": job["version"],
        "loss": job["loss"],
        "heldout_loss": job["heldout_last"],
        "tokens_per_s": job["tokens_per_s"],
        "left_s": left_s,
        "started_ms": job["submitted_wall_ns"] // NS_PER_MS,
        "reason": job["reason"],
    }


def _decision(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "at_ms": entry["wall_ns"] // NS_PER_MS,
        "subject": entry["subject"],
        "decision": entry["text"],
        "reason": "",
    }


def gauge(host: CoordinatorHost) -> None:
    """Set what is read off the pool as it is now rather than counted; a job that is over has no such figures."""
    metrics = host.metrics
    for instrument in (metrics.leases_open, metrics.workers, metrics.shards):
        instrument.clear()
    for job, run in host.role.runs.items():
        if run.over:
            continue
        roster, samples = run.ctx.roster, run.state.samples
        metrics.leases_open.labels(job).set(len(samples.leases) if samples is not None else 0)
        metrics.workers.labels(job).set(sum(w.ready for w in roster.workers.values()))
        metrics.shards.labels(job).set(sum(r.ready for r in roster.replicas.values()))


@asynccontextmanager
async def serve_page(host: CoordinatorHost, operator: Operator) -> AsyncIterator[str]:
    """The page and /metrics on loopback; yields their address. Raises UserError for a port in use."""

    async def metrics(request: Request) -> Response:
        gauge(host)
        return Response(host.metrics.render(), media_type=CONTENT_TYPE)

    answers = Answers(host.options.directory)
    feed = PoolFeed(host, operator, answers)
    app = Starlette(routes=[*make_routes(feed), Route("/metrics", metrics)])
    sock = bind("127.0.0.1", host.options.http_port, "--http-port")
    address = f"http://127.0.0.1:{sock.getsockname()[1]}"
    guarded = Guard(app, open_paths=OPEN_PATHS)  # loopback only: no key
    config = uvicorn.Config(guarded, log_config=None, lifespan="off", access_log=False)
    server = uvicorn.Server(config)
    server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
    async with TaskGroup() as tasks:
        serving = tasks.create_task(server._serve(sockets=[sock]))
        refreshing = tasks.create_task(feed.refresh())
        try:
            yield address
        finally:
            server.should_exit = True
            server.force_exit = True
            refreshing.cancel()
            await answers.close()
            with contextlib.suppress(asyncio.CancelledError):
                await serving
