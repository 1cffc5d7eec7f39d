"""A coordinator of canned answers behind the real control server: what the commands ask is real, its sense is not."""

from __future__ import annotations

import asyncio
import json
import os
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from medley.protocol.doors import JoinReply, JoinRequest
from medley.protocol.errors import UserError
from medley.protocol.wire import Envelope
from medley.runtimes.lock import Lock
from medley.transports.control.contract import Limits
from medley.transports.control.server import ControlServer
from medley.transports.identity import Authority

Body = dict[str, Any]
JOB: Body = {
    "job": "demo-1", "name": "demo", "state": "running", "reason": "", "version": 2, "samples": 64, "total": 128,
    "epoch": 0.5, "loss": 3.25, "heldout_first": 8.0, "heldout_last": 4.0, "accuracy": 0.25, "tokens": 5000,
    "tokens_per_s": 1250.0, "elapsed_s": 4.0, "machines": 2, "rollbacks": 0, "aborted": 1, "generation": 1,
    "submitted_wall_ns": 1_795_167_000_000_000_000, "changed_wall_ns": 1_795_167_001_000_000_000, "checkpoint": 2,
    "export": None,
}  # fmt: skip
NODE: Body = {
    "node": "worker-1", "connected": True, "roles": ["worker", "shard"], "cores": 2, "memory_bytes": 4 << 30,
    "platform": "Linux", "tokens_per_s": 1250.0, "phase": "training", "leases": 1, "shards": [0], "heard_s_ago": 0.4,
    "reason": "trains",
}  # fmt: skip
SERVING: Body = {
    "job": "chat-1", "name": "chat", "endpoint": "tcp://127.0.0.1:3", "priority": 2, "reason": "it has 2 of 3 machines",
    "machines": [{"name": "a", "state": "serves", "leaving": ""}, {"name": "b", "state": "starting", "leaving": ""}],
    "since_s": 75.0, "heard_s_ago": 0.2,
}  # fmt: skip
COMMIT: Body = {
    "version": 3, "loss": 3.0, "tokens": 2500, "samples": 32, "lr": 1e-3,
    "members": [{"node": "worker-1", "staleness": 0}], "elapsed_s": 6.0, "wall_ns": 1_795_167_002_000_000_000,
}  # fmt: skip
HELDOUT: Body = {"version": 3, "loss": 3.5, "accuracy": 0.3, "elapsed_s": 6.0, "wall_ns": 1_795_167_003_000_000_000}
DECISION: Body = {"wall_ns": 1_795_167_000_500_000_000, "subject": "demo-1", "text": "placed on worker-1: it is alone"}
DONE: Body = {**JOB, "state": "done", "samples": 128, "heldout_last": 3.5, "accuracy": 0.3, "export": "/exports/demo-1"}


class Canned:
    """Answers by method; a callable answer gets the question's body. `asked` keeps every question."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, Body]] = []
        self.events: list[Body] = []
        self.on_followed: Callable[[], None] = lambda: None
        self.hold = False  # keep the followers waiting after the events
        self.answers: dict[str, Body | Callable[[Body], Body]] = {
            "submit": {"job": "demo-1"},
            "jobs": {"jobs": [JOB]},
            "job": {
                "job": JOB, "commits": [COMMIT], "heldout": [HELDOUT],
                "checkpoints": [{"version": 2, "nbytes": 4096}],
            },
            "history": lambda body: (
                {"entries": [{"kind": "commit", **COMMIT}], "next": 1}
                if not body["begin"]
                else {"entries": [{"kind": "heldout", **HELDOUT}], "next": None}
            ),
            "cancel": {"job": "demo-1"},
            "resume": {"job": "demo-1"},
            "status": {
                "term": 3, "uptime_s": 75.0, "version": "0.1.0", "nodes": [NODE], "jobs": [JOB],
                "servings": [SERVING], "addresses": {"control": "127.0.0.1:1", "door": "127.0.0.1:2"},
            },
            "nodes": {"nodes": [NODE, {**NODE, "node": "lab-2", "connected": False, "reason": "its connection ended"}]},
            "explain": {"decisions": [DECISION]},
            "token": {"token": "medley1.secret", "id": "t1", "expires_wall_ns": 1_795_170_600_000_000_000},
            "tokens": {"tokens": [{"id": "t1", "uses": 2, "used": 1, "expires_wall_ns": 1_795_170_600_000_000_000}]},
            "revoke": {},
        }  # fmt: skip

    def connected(self, node: str, boot: str) -> None: ...

    def heard(self, node: str, envelope: Envelope) -> None: ...

    def lost(self, node: str, boot: str) -> None: ...

    async def join(self, request: JoinRequest) -> JoinReply:
        raise UserError("this one lets nobody in")

    async def ask(self, method: str, body: bytes, caller: str) -> bytes:
        question = json.loads(body)
        self.asked.append((method, question))
        if method not in self.answers:
            raise UserError(f"a coordinator cannot be asked '{method}'")
        answer = self.answers[method]
        return json.dumps(answer(question) if callable(answer) else answer).encode()

    async def follow(self, method: str, body: bytes, caller: str) -> AsyncGenerator[bytes, None]:
        self.asked.append((method, json.loads(body)))
        for event in self.events:
            yield json.dumps(event).encode()
        self.on_followed()
        if self.hold:
            await asyncio.Event().wait()

    def bodies(self, method: str) -> list[Body]:
        return [body for asked, body in self.asked if asked == method]


@contextmanager
def running(directory: Path) -> Iterator[Canned]:
    """Serve canned answers, with the files that a coordinator leaves in its directory."""
    canned = Canned()
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    server = asyncio.run_coroutine_threadsafe(_open(directory, canned), loop).result(20)
    lock = Lock(directory / "lock", "a coordinator runs there")
    try:
        yield canned
    finally:
        lock.release()
        asyncio.run_coroutine_threadsafe(server.close(), loop).result(20)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(20)
        loop.close()


async def _open(directory: Path, canned: Canned) -> ControlServer:
    now_ns = time.time_ns()
    directory.mkdir(parents=True, exist_ok=True)
    authority = Authority.open(directory, now_ns)
    authority.enrol("operator", "operator", now_ns).save(directory / "operator.pem")
    server = await ControlServer.open(
        host="127.0.0.1",
        control_port=0,
        door_port=0,
        identity=authority.serve("coordinator", [], now_ns),
        handler=canned,
        limits=Limits(drain_timeout_s=0.2),
    )
    where = {"control": server.control_address, "door": server.door_address, "http": "", "pid": os.getpid()}
    (directory / "address.json").write_text(json.dumps(where))
    return server
