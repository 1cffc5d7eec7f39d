"""Machines that join over a network and train together while strangers knock, cables are pulled, owners think again.

The job is the integer proof, so "the training worked" means: every sample was counted exactly once.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from tests.fleet.namespaces import HERE, Machine, possible, two_machines
from tests.waiting import until

from medley.engines.proof import miscounted
from medley.runtimes.clock import SystemClock
from medley.transports.identity import Authority, create_token, parse_token

pytestmark = [
    pytest.mark.skipif(not possible(), reason="network namespaces need root and the `ip` command"),
    pytest.mark.timeout(900),
]
DEADLINE_S = 300.0


@dataclass
class Fleet:
    """A coordinator on machine `a`, and what its directory tells."""

    a: Machine
    b: Machine

    @property
    def state(self) -> Path:
        return self.a.room / "coordinator"

    def medley(self, *arguments: str) -> dict[str, Any]:
        """Ask at the coordinator's machine. The answer as JSON."""
        done = self.a.run("-m", "medley", *arguments, "--json")
        assert done.returncode == 0, done.stderr
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    def token(self, *wishes: str) -> str:
        return str(self.medley("token", "create", *wishes)["token"])

    def join(self, machine: Machine, label: str, token: str, *more: str) -> None:
        machine.start(label, "-m", "medley", "join", *more, "--token", token, "--name", label, *at(machine, label))

    def refused(self, token: str, *more: str) -> str:
        """What a machine that is not let in is told."""
        done = self.b.run("-m", "medley", "join", *more, "--token", token, *at(self.b, "refused"))
        assert done.returncode == 2, done.stderr
        assert "Traceback" not in done.stderr
        return done.stderr

    def told(self, pattern: str) -> list[str]:
        """The coordinator's decisions that match."""
        path = self.state / "decisions.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [line for line in lines if re.search(pattern, line)]

    def submit(self, samples: int, step_ms: float, replication: int = 1) -> str:
        path = self.a.room / "proof.json"
        path.write_text(json.dumps(proof(samples, step_ms, replication)))
        return str(self.medley("train", str(path), "--detach")["job"])

    def state_of(self, job: str) -> str:
        path = self.state / "jobs" / job / "history.jsonl"
        entries = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        states = [entry["state"] for entry in entries if entry["kind"] == "state"]
        return str(states[-1]) if states else ""

    def commits(self, job: str) -> int:
        path = self.state / "jobs" / job / "history.jsonl"
        return path.read_text().count('"kind": "commit"') if path.exists() else 0

    def finish(self, job: str) -> None:
        until(lambda: self.state_of(job) in ("done", "failed"), deadline_s=DEADLINE_S, what=f"the end of {job}")
        assert self.state_of(job) == "done", self.told(job)
        assert miscounted(self.state / "exports" / job) == (0, 0)


def at(machine: Machine, label: str) -> tuple[str, str]:
    return "--dir", str(machine.room / label)


def proof(samples: int, step_ms: float, replication: int) -> dict[str, Any]:
    optimizer = {"kind": "sgd", "lr": 1.0, "weight_decay": 0.0, "clip_norm": 0.0, "schedule": "constant"}
    return {
        "name": "proof",
        "task": "medley.engines.proof:OneHot",
        "task_options": {"samples": samples, "step_ms": step_ms, "micro_batch": 16},
        "data": {"source": "task"},
        "train": {
            "batch_samples": 16,
            "aggregation": "sum",
            "optimizer": {**optimizer, "warmup_fraction": 0.0},
            "eval_every_commits": 0,
        },
        "placement": {"shards": 2, "replication": replication, "block_elements": 1024, "encrypt": False},
    }


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    with two_machines(tmp_path) as (a, b):
        a.start("up", "-m", "medley", "up", "--workers", "1")
        until(
            lambda: "medley join" in a.said("up") or a.started[0].poll() is not None,
            deadline_s=DEADLINE_S,
            what="the line to join with",
        )
        yield Fleet(a, b)


@pytest.mark.slow
def test_training_goes_on_while_strangers_are_refused(fleet: Fleet) -> None:
    first = re.search(r"medley1\.\S+", fleet.a.said("up"))
    assert first is not None, fleet.a.said("up")
    fleet.join(fleet.b, "left", first[0], "--allow-code")
    fleet.join(fleet.b, "right", fleet.token(), "--allow-code")
    until(lambda: len(fleet.told("joined: ")) == 3, deadline_s=DEADLINE_S, what="two machines from afar and one here")
    wrong = replace(parse_token(fleet.token()), secret="x" * 43).text()
    foreign = Authority.open(fleet.b.room, SystemClock().wall_ns())
    other, _ = create_token(foreign.certificate_pem, ["10.77.0.1:7071"], SystemClock().wall_ns())
    brief = fleet.token("--lifetime", "1s")
    impostor = foreign.enrol("left", "node", SystemClock().wall_ns())
    impostor.save(fleet.b.room / "impostor.pem")
    vault = re.search(r"10\.77\.0\.1:(\d+)", str(fleet.medley("status")["addresses"]["vault"]))
    assert vault is not None

    job = fleet.submit(samples=12288, step_ms=100)
    until(lambda: fleet.commits(job) > 2, deadline_s=DEADLINE_S, what="training")
    ports = ("7070", "7071", vault[1], str(int(vault[1]) + 1))  # and that of a shard
    knocking = fleet.b.run(str(HERE / "strangers.py"), "10.77.0.1", str(fleet.b.room / "impostor.pem"), *ports)
    assert knocking.stdout == "knocked at 4 ports\n", knocking.stderr
    assert "already used" in fleet.refused(first[0])
    assert "not known here" in fleet.refused(wrong)
    assert "another coordinator answers" in fleet.refused(other.text(), "10.77.0.1:7071")
    assert "expired" in fleet.refused(brief)
    assert fleet.state_of(job) == "running", "all of that was to happen while machines train"

    fleet.finish(job)
    log = (fleet.state / "logs" / "coordinator.jsonl").read_text()
    assert log.count("join refused") == 3  # the foreign token never reached the coordinator
    assert first[0] not in log and "PRIVATE KEY" not in log
    errors = "".join(path.read_text() for path in (fleet.state / "logs").glob("*.err"))
    assert "Handshake failed" in errors  # at the door and the control port
    assert "refused a connection to the tensor port" in errors
    assert not fleet.told("vault ended|engine .* ended")


def test_a_coordinator_is_found_without_an_address(fleet: Fleet) -> None:
    token = parse_token(fleet.token())
    astray = replace(token, addresses=("127.0.0.1:7071",)).text()  # as if the coordinator had moved since
    fleet.join(fleet.b, "found", astray)
    until(lambda: "belongs to the pool at 10.77.0.1:7070" in fleet.b.said("found"), deadline_s=40, what="the way there")
    until(lambda: fleet.told("found-.*joined: "), what="the machine that found its way")
    done = fleet.b.run("-m", "medley", "join", *at(fleet.b, "nobody"))
    assert done.returncode == 2
    assert "at 10.77.0.1, and a machine needs a token to join the first time" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("replication", [1, 2])
def test_a_machine_whose_cable_was_pulled_comes_back(fleet: Fleet, replication: int) -> None:
    for label in ("left", "right"):
        fleet.join(fleet.b, label, fleet.token(), "--allow-code")
    until(lambda: len(fleet.told("joined: ")) == 3, deadline_s=DEADLINE_S, what="all machines")
    job = fleet.submit(samples=8192, step_ms=40, replication=replication)
    for _ in range(2):
        before, gone, back = fleet.commits(job), len(fleet.told("lost: ")), len(fleet.told("joined: "))
        until(lambda b=before: fleet.commits(job) > b + 2, deadline_s=DEADLINE_S, what="training")  # type: ignore[misc]
        fleet.b.cable("down")
        until(lambda g=gone: len(fleet.told("lost: ")) >= g + 2, deadline_s=DEADLINE_S, what="two lost")  # type: ignore[misc]
        fleet.b.cable("up")
        until(lambda b=back: len(fleet.told("joined: ")) >= b + 2, deadline_s=DEADLINE_S, what="both back")  # type: ignore[misc]
    fleet.finish(job)


@pytest.mark.slow
def test_a_revoked_machine_is_out_and_the_job_goes_on(fleet: Fleet) -> None:
    for label in ("left", "right"):
        fleet.join(fleet.b, label, fleet.token(), "--allow-code")
    until(lambda: len(fleet.told("joined: ")) == 3, deadline_s=DEADLINE_S, what="all machines")
    job = fleet.submit(samples=4096, step_ms=40)
    until(lambda: fleet.commits(job) > 2, deadline_s=DEADLINE_S, what="training")
    (node,) = [one["node"] for one in fleet.medley("nodes")["nodes"] if one["node"].startswith("left-")]
    fleet.medley("nodes", "revoke", node, "--reason", "given away")
    until(lambda: "given away" in (fleet.b.room / "left" / "node.jsonl").read_text(), what="the reason")
    fleet.finish(job)
    (view,) = [one for one in fleet.medley("nodes")["nodes"] if one["node"] == node]
    assert not view["connected"]
