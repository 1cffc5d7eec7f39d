"""What an operator may ask a coordinator, and the answers: the command line, the page and Python speak through this.

Questions and answers are plain JSON. Questions that change something become events of the role; the answer is sent when
they are in the log.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from operator import itemgetter
from typing import Any

import msgspec

from medley.jobs.check import check
from medley.jobs.load import job_from_dict
from medley.jobs.names import new_id
from medley.jobs.servings import ServingDesk, state_of
from medley.protocol.codec import text
from medley.protocol.doors import JoinReply, JoinRequest
from medley.protocol.errors import UserError, did_you_mean
from medley.protocol.events import Cancel, CoordinatorEvent, Resume, Submit
from medley.protocol.ids import NS_PER_S, JobId, NodeId
from medley.protocol.records import NodeRevoked
from medley.protocol.spec import JobSpec
from medley.protocol.version import __version__
from medley.protocol.wire import Envelope
from medley.roles import ledger
from medley.roles.context import NodeView
from medley.roles.roster import WorkerView
from medley.roles.run import Run
from medley.runtimes.addresses import address_of
from medley.runtimes.coordinator import CoordinatorHost

HISTORY = ("commit", "heldout", "checkpoint", "state", "placement")
HISTORY_PAGE = 2_000  # entries of an answer, which has at most 16 MiB
FOLLOW_MAX = 4096  # events that may wait for a slow follower; of more it is told only how many it missed

Body = dict[str, Any]


class Operator:
    """The control plane's handler: streams go to the host, questions are answered here."""

    def __init__(self, host: CoordinatorHost) -> None:
        self._host = host
        self.servings = ServingDesk(host)
        self._questions = {
            "submit": self._submit,
            "jobs": self._jobs,
            "job": self._job,
            "history": self._history,
            "cancel": self._cancel,
            "resume": self._resume,
            "status": self._status,
            "nodes": self._nodes,
            "explain": self._explain,
            "token": self._token,
            "tokens": self._tokens,
            "revoke": self._revoke,
            "export": self._export,
            **self.servings.questions,
        }

    def connected(self, node: NodeId, boot: str) -> None:
        self._host.connected(node, boot)

    def heard(self, node: NodeId, envelope: Envelope) -> None:
        self._host.heard(node, envelope)

    def lost(self, node: NodeId, boot: str) -> None:
        self._host.lost(node, boot)

    async def join(self, request: JoinRequest) -> JoinReply:
        return await self._host.join(request)

    async def renew(self, request: JoinRequest, certificate: bytes) -> JoinReply:
        return await self._host.renew(request, certificate)

    async def ask(self, method: str, body: bytes, caller: str) -> bytes:
        question = self._questions.get(method)
        if question is None:
            raise UserError(f"a coordinator cannot be asked '{method}'; {did_you_mean(method, self._questions)}")
        try:
            arguments = msgspec.json.decode(body or b"{}", type=dict[str, Any])
        except msgspec.DecodeError as error:
            raise UserError(f"the question '{method}' is not JSON: {error}") from None
        return msgspec.json.encode(await question(arguments))

    async def follow(self, method: str, body: bytes, caller: str) -> AsyncGenerator[bytes, None]:
        """Live events of one job (until it is over), or of all; {"kind": "missed", "count"} where it was too slow."""
        arguments = msgspec.json.decode(body or b"{}", type=dict[str, Any])
        job = self.find(str(arguments["job"])) if arguments.get("job") else None
        queue: asyncio.Queue[Body] = asyncio.Queue(FOLLOW_MAX)
        missed = 0

        def offer(entry: Body) -> None:
            nonlocal missed
            if job is None or entry.get("job") == job.ctx.job or entry["kind"] == "decision":
                missed += queue.full()
                if not queue.full():
                    queue.put_nowait(entry)

        stop = self._host.chronicle.listen(offer)
        try:
            while job is None or not job.over or not queue.empty():
                yield msgspec.json.encode(await queue.get())
                if missed and queue.empty():
                    count, missed = missed, 0
                    yield msgspec.json.encode({"kind": "missed", "count": count})
        finally:
            stop()

    # -- jobs -------------------------------------------------------------------------------------------------

    async def _submit(self, body: Body) -> Body:
        spec = job_from_dict(body.get("spec", {}), "the submitted job")
        check(spec)
        job = new_id(spec.name)
        await self._logged(Submit(job, text(spec), self._host.clock.wall_ns()))
        return {"job": job, "note": self._note(spec)}

    def _note(self, spec: JobSpec) -> str:
        """What of a job this coordinator does in its own way, as a sentence; '' where nothing."""
        encrypts = self._host.options.encrypt
        if spec.placement.encrypt == encrypts:
            return ""
        how = "encrypts every tensor" if encrypts else "encrypts no tensor, since all of it is on one machine"
        wanted = str(spec.placement.encrypt).lower()
        return f"placement.encrypt is {wanted}, but is the pool's own choice: this one {how}"

    async def _jobs(self, body: Body) -> Body:
        return {"jobs": [self.describe(run) for run in self._host.role.runs.values()]}

    async def _job(self, body: Body) -> Body:
        run = self.find(str(body.get("job", "")))
        chronicle = self._host.chronicle
        return {
            "job": self.describe(run),
            "commits": chronicle.curve(run.ctx.job, "commit")[-200:],
            "heldout": chronicle.curve(run.ctx.job, "heldout"),
            "checkpoints": [{"version": c.version, "nbytes": c.nbytes} for c in run.state.checkpoints],
            "spec": msgspec.to_builtins(run.state.parsed_spec()),
        }

    async def _history(self, body: Body) -> Body:
        """A page of what happened to a job, oldest first; `next` is the `begin` of the page after it, or null."""
        run = self.find(str(body.get("job", "")))
        begin = max(0, int(body.get("begin", 0)))
        chronicle = self._host.chronicle
        past = [entry for kind in HISTORY for entry in chronicle.curve(run.ctx.job, kind)]
        past.sort(key=itemgetter("wall_ns"))
        end = begin + HISTORY_PAGE
        return {"entries": past[begin:end], "next": end if end < len(past) else None}

    async def _cancel(self, body: Body) -> Body:
        run = self.find(str(body.get("job", "")))
        if run.over:
            raise UserError(f"job {run.ctx.job} is {run.state.state} already")
        await self._logged(Cancel(run.ctx.job, self._host.clock.wall_ns()))
        return {"job": run.ctx.job}

    async def _resume(self, body: Body) -> Body:
        run = self.find(str(body.get("job", "")))
        if run.state.state not in ("cancelled", "failed"):
            raise UserError(f"job {run.ctx.job} is {run.state.state}; only a cancelled or failed job is resumed")
        await self._logged(Resume(run.ctx.job, self._host.clock.wall_ns()))
        return {"job": run.ctx.job}

    async def _export(self, body: Body) -> Body:
        run = self.find(str(body.get("job", "")))
        path = self._host.options.directory / "exports" / run.ctx.job
        if not path.is_dir():
            raise UserError(f"job {run.ctx.job} is {run.state.state} and has no result yet")
        return {"path": str(path)}

    def find(self, name: str) -> Run:
        """A job by its id, or the newest of that name. Raises UserError."""
        runs = self._host.role.runs
        if name in runs:
            return runs[name]
        named = [r for r in runs.values() if r.state.parsed_spec().name == name]
        if not named:
            known = did_you_mean(name, runs) if runs else "no job was submitted yet"
            raise UserError(f"there is no job '{name}'; {known}")
        return max(named, key=lambda r: r.state.submitted_wall_ns)

    def describe(self, run: Run) -> Body:
        state = run.state
        samples = state.samples
        done = ledger.committed_samples(samples) if samples is not None else 0
        commits = self._host.chronicle.recent_commits(run.ctx.job)
        export = self._host.options.directory / "exports" / run.ctx.job
        return {
            "job": run.ctx.job,
            "name": state.parsed_spec().name,
            "state": state.state,
            "reason": state.reason or (self._host.role.why.get(run.ctx.job, "") if not run.over else ""),
            "machines": len(run.ctx.allotted),
            "version": state.version,
            "samples": done,
            "total": samples.total if samples is not None else 0,
            "epoch": done / samples.samples if samples is not None else 0.0,
            "missing": ledger.missing(samples) if samples is not None else 0,
            "doubled": samples.doubled if samples is not None else 0,
            "loss": commits[-1]["loss"] if commits else None,
            "heldout_first": state.heldout_first if state.measured >= 0 else None,
            "heldout_last": state.heldout_last if state.measured >= 0 else None,
            "accuracy": state.accuracy_last if state.measured >= 0 else None,
            "tokens": state.tokens,
            "tokens_per_s": _recent_rate(commits),
            "elapsed_s": state.elapsed_ns / NS_PER_S,
            "rollbacks": state.rollbacks,
            "aborted": state.aborted,
            "generation": state.generation,
            "submitted_wall_ns": state.submitted_wall_ns,
            "changed_wall_ns": state.changed_wall_ns,
            "checkpoint": state.checkpoints[-1].version if state.checkpoints else 0,
            "export": str(export) if export.is_dir() and state.state == "done" else None,
        }

    # -- machines ---------------------------------------------------------------------------------------------

    async def _status(self, body: Body) -> Body:
        return self.snapshot()

    def snapshot(self) -> Body:
        host = self._host
        server = host.server
        return {
            "term": host.term,
            "version": __version__,
            "encrypts": host.options.encrypt,
            "reachable": host.names[0],
            "uptime_s": (host.clock.now_ns() - host.began_ns) / NS_PER_S,
            "nodes": [self.describe_node(v) for v in host.role.pool.values()],
            "jobs": [self.describe(run) for run in host.role.runs.values()],
            "servings": [self.servings.describe(hosting) for hosting in host.role.servings.live.values()],
            "addresses": {
                "control": server.control_address if server else "",
                "door": server.door_address if server else "",
                "vault": host.role.vault.endpoint,
            },
            "relayed": [
                {"node": pair.asker, "to": pair.place.words, "on": pair.place.node, "why": pair.why.value}
                for pair in host.relay.pairs()
            ],
        }

    async def _nodes(self, body: Body) -> Body:
        return {"nodes": [self.describe_node(v) for v in self._host.role.pool.values()]}

    def describe_node(self, view: NodeView) -> Body:
        role = self._host.role
        run = role.working.get(view.job)
        worker = run.ctx.roster.workers.get(view.node) if run is not None else None
        held = run.state.samples.leases if run is not None and run.state.samples is not None else {}
        shards = self._shards_on(view)
        capability = view.capability
        roles = [n for n, on in (("worker", capability.worker), ("shard", capability.shard)) if on]
        return {
            "node": view.node,
            "connected": view.connected,
            "roles": roles,
            "cores": capability.cores,
            "memory_bytes": capability.memory_bytes,
            "platform": capability.platform,
            "job": view.job,
            "tokens_per_s": worker.tokens_per_s if worker else 0.0,
            "serves": self._serves(view),
            "phase": self._phase(view, worker),
            "leases": sum(h.node == view.node for h in held.values()),
            "shards": sorted(shard for found in shards.values() for shard in found),
            "heard_s_ago": (self._host.clock.now_ns() - view.heard_ns) / NS_PER_S,
            "reason": self._why(view, run, shards),
        }

    def _phase(self, view: NodeView, worker: WorkerView | None) -> str:
        if not view.connected:
            return "lost"
        if worker is not None and worker.ready:
            return "training"
        return "serving" if self._serves(view) else "idle"

    def _serves(self, view: NodeView) -> list[JobId]:
        """For which servings it is a stage."""
        return [job for job, hosting in self._host.role.servings.live.items() if view.node in hosting.stages]

    def _shards_on(self, view: NodeView) -> dict[JobId, list[int]]:
        """Of which jobs it holds which shards."""
        role = self._host.role
        found: dict[JobId, list[int]] = {}
        for job in sorted(role.shared.hosting.get(view.node, ())):
            places = role.runs[job].state.places
            found[job] = [p.shard for p in places if view.node in (p.primary, p.backup)]
        return found

    def _why(self, view: NodeView, run: Run | None, shards: dict[JobId, list[int]]) -> str:
        if not view.connected:
            return "its connection ended"
        parts = [f"holds shard {', '.join(map(str, held))} of {job}" for job, held in shards.items() if held]
        servings = self._host.role.servings.live
        serves = self._serves(view)
        parts += [f"{job}: {state_of(servings[job].stages[view.node])}" for job in serves]
        if run is not None:
            worker = run.ctx.roster.workers.get(view.node)
            if worker is not None:
                parts.append("trains" if worker.ready else "loads its model")
            elif unfit := run.ctx.unfit_reason(view.node):
                parts.append(f"cannot train {run.ctx.job}: {unfit}")
            else:
                parts.append("waits to be enlisted")
        elif not view.capability.worker:
            parts = parts or ["keeps parameters for the next job"]
        elif not serves:
            parts.append(self._host.role.why.get(view.node) or "no job needs it")
        return "; ".join(parts)

    async def _explain(self, body: Body) -> Body:
        return {"decisions": self._host.chronicle.decisions(str(body.get("subject", "")))}

    async def _token(self, body: Body) -> Body:
        host = self._host
        assert host.server is not None
        lifetime_s, uses = int(body.get("lifetime_s", 3600)), int(body.get("uses", 1))
        port = host.server.door_address.rpartition(":")[2]
        addresses = [address_of(name, int(port)) for name in host.names]
        token, record = host.door.create(addresses, host.clock.wall_ns(), lifetime_s, uses)
        await host.keep(record)
        return {"token": token, "id": record.token, "expires_wall_ns": record.expires_wall_ns}

    async def _tokens(self, body: Body) -> Body:
        found = self._host.door.tokens()
        return {
            "tokens": [
                {"id": t.id, "uses": t.uses, "used": len(t.redeemed), "expires_wall_ns": t.expires_ns} for t in found
            ]
        }

    async def _revoke(self, body: Body) -> Body:
        node, reason = str(body.get("node", "")), str(body.get("reason", "") or "by a person")
        members = {*self._host.role.pool, *self._host.door.members}
        if node not in members:
            known = did_you_mean(node, members) if members else "none has joined"
            raise UserError(f"there is no node '{node}'; {known}")
        await self._host.keep(NodeRevoked(node, reason))
        self._host.revoke(node, reason)
        return {}

    async def _logged(self, event: CoordinatorEvent) -> None:
        """Until what the event causes is in the log: the batch under way may have begun without it, the next has it."""
        self._host.post(event)
        await self._host.settled()
        await self._host.settled()


def _recent_rate(commits: list[Body]) -> float:
    """Tokens a second over the last commits."""
    recent = commits[-20:]
    if len(recent) < 2:
        return 0.0
    seconds = recent[-1]["elapsed_s"] - recent[0]["elapsed_s"]
    return sum(c["tokens"] for c in recent[1:]) / seconds if seconds > 0 else 0.0
