"""Where a transcript is played: a coordinator with its log, or a single worker or shard."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tests.scenarios.notation import line, read, split
from tests.scenarios.serving_stage import ServingStage

from medley.protocol import effects as fx
from medley.protocol import engine as e
from medley.protocol import messages as m
from medley.protocol.codec import Codec, text
from medley.protocol.events import Cancel, EngineSaid, Heard, Lost, Resume, Submit, Tick, Told
from medley.protocol.layout import TensorSpec
from medley.protocol.plan import Plan
from medley.protocol.records import Record
from medley.protocol.spec import Checkpoint, JobSpec, Optimizer, Placement, Sync, Train
from medley.roles.coordinator import Coordinator
from medley.roles.shard import Shard
from medley.roles.worker import Worker

JOB = "j"
S = 1_000_000_000
LOG = Codec(Record)


def make_spec(options: dict[str, str]) -> JobSpec:
    """A job of one-hot arithmetic; the options are those that a transcript's `given` may name."""
    return JobSpec(
        train=Train(
            epochs=float(options.get("epochs", "1")),
            batch_samples=int(options.get("batch", "2")),
            aggregation="sum",
            optimizer=Optimizer(kind="sgd", lr=1.0, schedule="constant", warmup_fraction=0.0, clip_norm=0.0),
            sync=Sync(
                mode=options.get("mode", "sync"),  # type: ignore[arg-type]
                slots=int(options.get("slots", "0")),
                quorum=float(options.get("quorum", "0.75")),
                backups=int(options.get("backups", "0")),
                staleness_bound=int(options.get("bound", "4")),
                staleness_power=0.0,
                in_flight=int(options.get("in_flight", "2")),
            ),
            eval_every_commits=0,
        ),
        placement=Placement(
            shards=int(options.get("shards", "1")),
            replication=int(options.get("replication", "1")),  # type: ignore[arg-type]
        ),
        checkpoint=Checkpoint(every_s=float(options.get("every_s", "1000"))),
    )


@dataclass
class CoordinatorStage:
    """Nodes w1.. train, s1.. hold shards. Set-up conversations are played by the stage until all are ready."""

    options: dict[str, str]
    now: int = S
    log: list[tuple[str, str, bytes]] = field(default_factory=list)
    term: int = 0
    boots: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        samples = int(self.options.get("samples", "16"))
        self.plan = Plan(make_spec(self.options), samples, 0, (TensorSpec("t", (samples,), ""),), ())
        self._boot()
        self._settle(self.handle(Submit(JOB, text(self.plan.spec), 0)))
        for kind in ("w", "s"):
            for i in range(int(self.options.get({"w": "workers", "s": "hosts"}[kind], "2" if kind == "w" else "1"))):
                self._settle(self.event(["hello", f"{kind}{i + 1}"]))
        self._settle(self.event(["tick", "6"]))

    @property
    def generation(self) -> int:
        return self.coordinator.runs[JOB].state.generation

    def _boot(self) -> None:
        self.term += 1
        self.coordinator = Coordinator(self.term)
        self.coordinator.restore([(stream, LOG.from_json(name, body)) for stream, name, body in self.log])
        self._settle(self.handle(EngineSaid(e.Opened(m.Address("vault", "vault")))))

    def crash(self, where: str, what: str) -> None:
        """The coordinator died before or after a record was written, and starts again from its log."""
        last = max(i for i, (_, name, _) in enumerate(self.log) if name == what)
        del self.log[last + (where == "after") :]
        self._boot()

    def handle(self, event: Any) -> list[fx.Effect]:
        effects = self.coordinator.handle(event, self.now)
        for effect in effects:
            if isinstance(effect, fx.Persist):
                self.log.append((effect.stream, *LOG.to_json(effect.record)))
            elif isinstance(effect, fx.Compact):
                self.log = [(effect.stream, *LOG.to_json(effect.record))]
        return effects

    def event(self, words: list[str]) -> list[fx.Effect]:
        match words:
            case ["tick", seconds]:
                for node, boot in self.boots.items():
                    if self.coordinator.pool[node].connected and self.coordinator.pool[node].boot == boot:
                        self.coordinator.pool[node].heard_ns = self.now + int(float(seconds) * S)
                self.now += int(float(seconds) * S)
                return self.handle(Tick(self.now))
            case ["lost", node]:
                return self.handle(Lost(node, self.boots[node]))
            case ["hello" | "beat" as kind, node, *rest]:
                return self._statuses(kind, node, rest)
            case ["cancel"]:
                return self.handle(Cancel(JOB, self.now))
            case ["resume"]:
                return self.handle(Resume(JOB, self.now))
            case ["vault", *rest]:
                return self.handle(EngineSaid(self._read(rest)))
            case [node, *rest]:
                return self.handle(Heard(node, self._read(rest)))
        raise AssertionError(f"no such event: {words}")

    def _read(self, words: list[str]) -> Any:
        if words[0] in ("PeersKnown", "PeersSet") and not words[-1].startswith("number="):
            words = [*words, f"number={self.coordinator.runs[JOB].ctx.roster.keys_number}"]
        return read(words, JOB, self.generation)

    def _statuses(self, kind: str, node: str, rest: list[str]) -> list[fx.Effect]:
        """`hello NODE [anew] [WorkerStatus ...] [| ShardStatus ...]`"""
        if rest[:1] == ["anew"]:
            self.boots[node] = self.boots.get(node, "a") + "a"
            rest = rest[1:]
        boot = self.boots.setdefault(node, "a")
        found = " ".join(rest).split(" | ") if rest else []
        statuses = [read(split(part), JOB, self.generation) for part in found]
        workers = tuple(s for s in statuses if isinstance(s, m.WorkerStatus))
        shards = tuple(s for s in statuses if isinstance(s, m.ShardStatus))
        if kind == "beat":
            return self.handle(Heard(node, m.Heartbeat(node, workers, shards)))
        capability = m.Capability(1, 2**30, "", node.startswith("w"), node.startswith("s"))
        return self.handle(Heard(node, m.Hello(node, boot, capability, workers, shards)))

    def _settle(self, effects: list[fx.Effect]) -> None:
        """Answer as willing machines would, until nobody has anything to say."""
        waiting = list(effects)
        while waiting:
            effect = waiting.pop(0)
            for answer in self._answers(effect):
                waiting += self.handle(answer)

    def _answers(self, effect: fx.Effect) -> list[Any]:
        g = self.generation if JOB in self.coordinator.runs else 0
        match effect:
            case fx.Run(e.SetPeers(number)):
                return [EngineSaid(e.PeersKnown(number))]
            case fx.Run(e.PrepareJob()):
                return [EngineSaid(e.JobPrepared(JOB, text(self.plan)))]
            case fx.Send(node, m.AssignWorker()):
                return [Heard(node, m.EngineUp(JOB, g, -1, m.Address(node, node)))]
            case fx.Send(node, m.AssignShard(_, _, shard)):
                return [Heard(node, m.EngineUp(JOB, g, shard, m.Address(f"{node}/{shard}", f"{node}/{shard}")))]
            case fx.Send(node, m.Peers(_, _, shard, number)):
                said: list[Any] = [Heard(node, m.PeersSet(JOB, g, shard, number))]
                view = self.coordinator.runs[JOB].ctx.roster.replicas[node, shard]
                version = self.coordinator.runs[JOB].state.checkpoints[-1].version
                return said if view.ready else [*said, Heard(node, m.Ready(JOB, g, shard, version))]
            case fx.Send(node, m.Routes()):
                return [Heard(node, m.Ready(JOB, g, -1, -1))]
        return []

    def settle(self) -> None:
        """What the machines say when they have just been assigned anew."""
        ctx = self.coordinator.runs[JOB].ctx
        sends = [fx.Send(n, m.AssignShard(JOB, self.generation, s, "", (), 0, 0)) for n, s in ctx.roster.replicas]
        sends += [fx.Send(n, m.AssignWorker(JOB, self.generation, "", 0)) for n in ctx.roster.workers]
        self._settle([*sends, fx.Run(e.SetPeers(ctx.roster.keys_number, (), m.Address("", "")))])

    def show(self, effect: fx.Effect) -> tuple[str, str] | None:
        match effect:
            case fx.Persist(_, record):
                return "log", line(record, self.generation)
            case fx.Compact(_, record):
                return "log", "Snapshot"
            case fx.Send(node, message):
                return node, line(message, self.generation)
            case fx.Run(command):
                return "vault", line(command, self.generation)
            case fx.Close(node):
                return node, "closed"
            case fx.Explain(_, sentence):
                return "why", sentence
        return None


@dataclass
class RoleStage:
    """One worker or shard, in generation 1 of job j."""

    role: Worker | Shard
    now: int = S

    @property
    def generation(self) -> int:
        return self.role.generation

    def settle(self) -> None:
        raise AssertionError("only the coordinator's stage knows `settle`")

    def crash(self, where: str, what: str) -> None:
        raise AssertionError("only the coordinator's stage knows `crash`")

    def event(self, words: list[str]) -> list[fx.Effect]:
        match words:
            case ["tick", seconds]:
                self.now += int(float(seconds) * S)
                return self.role.handle(Tick(self.now), self.now)
            case ["told", *rest]:
                return self.role.handle(Told(read(rest, JOB, self.generation)), self.now)
            case ["engine", *rest]:
                return self.role.handle(EngineSaid(read(rest, JOB, self.generation)), self.now)
        raise AssertionError(f"no such event: {words}")

    def show(self, effect: fx.Effect) -> tuple[str, str] | None:
        match effect:
            case fx.Report(message):
                return "say", line(message, self.generation)
            case fx.Run(command):
                return "run", line(command, self.generation)
            case fx.StopEngine():
                return "stop", ""
            case fx.Reject(_, reason):
                return "refuse", reason
            case fx.Explain(_, sentence):
                return "why", sentence
        return None


def open_stage(role: str, options: dict[str, str]) -> CoordinatorStage | RoleStage | ServingStage:
    match role:
        case "serving":
            return ServingStage(options)
        case "coordinator":
            return CoordinatorStage(options)
        case "worker":
            worker = Worker("w1", "a", m.AssignWorker(JOB, 1, "", 0))
            worker.start()
            return RoleStage(worker)
        case "shard":
            shard = Shard(m.AssignShard(JOB, 1, 0, "", (0,), 0, 0))
            shard.start()
            return RoleStage(shard)
    raise AssertionError(f"no such role: {role}")
