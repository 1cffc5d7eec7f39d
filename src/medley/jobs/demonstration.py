"""The demonstration: a pool on this machine trains a language model, loses a worker, and answers questions.

Everything is the real thing (processes, sockets, log, checkpoints); only the sizes are small. What happens is told to a
`Teller`; what was measured is the `Findings`.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from medley.data.corpus import load_checks, load_pairs
from medley.jobs.emulation import crossed, goodput
from medley.jobs.listening import OVER, live, patiently
from medley.jobs.progress import Progress
from medley.protocol.conditions import preset
from medley.protocol.errors import UserError
from medley.protocol.ids import NS_PER_S
from medley.runtimes.clock import SystemClock
from medley.runtimes.local import Pool
from medley.transports.control.operator import OperatorClient

GOOD = 0.5  # ROUGE-L from which an answer counts as good
KILL_AT = 0.45  # fraction of the training after which a worker dies
EPOCHS = 6.0  # many small steps: that is what 320 answers in many wordings want
SHARD_NODES = 2
SLOW_BYTES_PER_S = 1e6


def specification(workers: int, minutes: float, network: str = "none") -> dict[str, Any]:
    """The demo's job: about 5 M parameters, from scratch, until its epochs or the minutes are over.

    Behind a link that carries less than SLOW_BYTES_PER_S a smaller model takes many steps between two small updates.
    """
    spec = _specification(workers, minutes)
    spec["network"] = {"profile": network}
    if goodput(preset(network)) < SLOW_BYTES_PER_S:
        spec["model"] |= {"base": "llama-nano", "vocab_size": 1024}
        spec["train"]["sync"] = {"mode": "local-sgd", "local_steps": 25}
        spec["train"]["compression"] = {"kind": "int8"}
        spec["train"]["eval_every_commits"] = 5
    return spec


def _specification(workers: int, minutes: float) -> dict[str, Any]:
    return {
        "name": "demo",
        "model": {"base": "llama-tiny", "vocab_size": 4096, "context_tokens": 128},
        "data": {"source": "builtin", "heldout_fraction": 0.04},
        "train": {
            "epochs": EPOCHS,
            "max_minutes": minutes,
            "batch_samples": max(1, 24 // workers),
            "optimizer": {"lr": 3e-3, "schedule": "cosine", "warmup_fraction": 0.05},
            "sync": {"mode": "sync"},
            "eval_every_commits": 25,
        },
        "placement": {"shards": 2, "encrypt": False},
        "checkpoint": {"every_s": 45.0, "keep": 2},
    }


@dataclass(slots=True)
class Answer:
    """One check question, what was expected, what the model said, and how close it came."""

    question: str
    expected: str
    answer: str
    rouge_l: float


@dataclass(frozen=True, slots=True)
class Link:
    """The emulated link of the workers, and the bytes that crossed it, of all of them together."""

    profile: str
    rtt_ms: float
    goodput_bytes_per_s: float
    up_nbytes: int
    down_nbytes: int


@dataclass(slots=True)
class Findings:
    """What the demonstration measured; `--json` writes it."""

    seconds: float = 0.0
    tokens_per_s: float = 0.0
    heldout_first: float = 0.0
    heldout_last: float = 0.0
    accuracy_last: float = 0.0
    kills: int = 0
    lease_out_again_s: float | None = None
    samples: int = 0
    samples_missing: int = 0
    samples_doubled: int = 0
    commits: int = 0
    answers_good: int = 0
    answers_total: int = 0
    answers: list[Answer] = field(default_factory=list)
    job: str = ""
    model: str = ""
    network: Link | None = None

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


class Teller(Protocol):
    """Who shows a person what happens."""

    def say(self, text: str) -> None: ...

    def show(self, progress: Progress, nodes: list[dict[str, Any]], event: dict[str, Any]) -> None: ...


class Demonstration:
    """One run of it. `run` trains and kills; `answer` asks the trained weights."""

    def __init__(self, pool: Pool, teller: Teller, workers: int, minutes: float, network: str = "none") -> None:
        self._pool = pool
        self._teller = teller
        self._spec = specification(workers, minutes, network)
        self._minutes = minutes
        self._victim = "worker-2" if workers > 1 else "worker-1"
        self._clock = SystemClock()
        self._nodes: list[dict[str, Any]] = []
        self._killed_wall_ns = 0
        self.findings = Findings()

    def run(self) -> None:
        """Train to the end, losing a worker on the way. Raises UserError, with the job's reason, if it fails."""
        operator = self._pool.operator
        job = operator.ask("submit", {"spec": self._spec})["job"]
        self.findings.job = job
        progress = Progress.of(operator.ask("job", {"job": job})["job"], self._minutes)
        for event in self._events(operator, job):
            progress.note(event)
            if event["kind"] == "state" and event["state"] == "running":
                progress.refresh(operator.ask("job", {"job": job})["job"])
            if event["kind"] == "commit":
                self._nodes = operator.ask("nodes")["nodes"]
                if progress.fraction >= KILL_AT and not self.findings.kills:
                    self._kill()
            self._watch_recovery(event)
            self._teller.show(progress, self._nodes, event)
        self._note(operator.ask("job", {"job": job})["job"])

    def _events(self, operator: OperatorClient, job: str) -> Iterator[dict[str, Any]]:
        while patiently(operator, job)["job"]["state"] not in OVER:
            yield from live(operator, job)

    def _kill(self) -> None:
        """SIGKILL the whole process of one machine: roles, stream and engine at once."""
        with contextlib.suppress(OSError, ValueError):
            pid = int((self._pool.options.directory / "nodes" / self._victim / "pid").read_text())
            self._killed_wall_ns = self._clock.wall_ns()
            os.kill(pid, getattr(signal, "SIGKILL", signal.SIGTERM))
            self.findings.kills += 1
            self._teller.say(f"now {self._victim} (process {pid}) is killed with SIGKILL, in the middle of its work")

    def _watch_recovery(self, event: dict[str, Any]) -> None:
        if not self._killed_wall_ns or event["kind"] != "decision":
            return
        if event["subject"] == f"leases of {self._victim}" and self.findings.lease_out_again_s is None:
            waited = (event["wall_ns"] - self._killed_wall_ns) / NS_PER_S
            self.findings.lease_out_again_s = round(waited, 3)
            self._teller.say(f"its samples are open for the others again after {waited:.2f} s: {event['text']}")
        elif event["subject"] == self._victim and event["text"].startswith("joined"):
            waited = (event["wall_ns"] - self._killed_wall_ns) / NS_PER_S
            self._teller.say(f"{self._victim} is back after {waited:.1f} s: the watchdog started it, it carries on")
            self._killed_wall_ns = 0

    def _note(self, job: dict[str, Any]) -> None:
        if job["state"] != "done":
            reason = job["reason"] or "nobody said why"
            raise UserError(f"the demonstration's job {job['job']} is {job['state']}, not done: {reason}")
        found = self.findings
        found.heldout_first, found.heldout_last = job["heldout_first"] or 0.0, job["heldout_last"] or 0.0
        found.accuracy_last = job["accuracy"] or 0.0
        found.samples, found.commits = job["samples"], job["version"]
        found.samples_missing, found.samples_doubled = job["missing"], job["doubled"]
        found.tokens_per_s = job["tokens"] / job["elapsed_s"] if job["elapsed_s"] else 0.0
        found.model = job["export"]
        found.network = self._link()

    def _link(self) -> Link | None:
        profile = self._spec["network"]["profile"]
        if profile == "none":
            return None
        conditions, moved = preset(profile), crossed(self._pool.options.directory / "nodes")
        return Link(profile, conditions.rtt_ms, goodput(conditions), moved.up_nbytes, moved.down_nbytes)

    def answer(self) -> Iterator[Answer]:
        """The check questions, one by one, answered by the exported weights alone."""
        from medley.engines.generate import Generator
        from medley.serving.metrics import rouge_l

        generator = Generator.load(Path(self.findings.model), "fp32")
        answers = {pair.id: pair.answer for pair in load_pairs()}
        for check in load_checks():
            said = generator.answer(check.question, max_tokens=80)
            expected = answers[check.pair_id]
            answer = Answer(check.question, expected, said, round(rouge_l(expected, said), 3))
            self.findings.answers.append(answer)
            self.findings.answers_total += 1
            self.findings.answers_good += answer.rouge_l >= GOOD
            yield answer
