"""A coordinator, its log and its vault, machines, jobs, and the links between them: all but the roles is a model.

Everything that happens follows from a `Setup` and a seed. Observers hear facts (`facts.py`) and make curves and bills
of them; watchers (`watch.py`) see every step and judge it. Faults are names with rates, or whatever `strike` decides:
each place that can fail asks `chance(fault, operation)`.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence
from pathlib import Path

from medley.protocol import effects as fx
from medley.protocol import engine as e
from medley.protocol import messages as m
from medley.protocol.codec import text
from medley.protocol.conditions import Conditions
from medley.protocol.events import Cancel, Event, Resume, Submit
from medley.protocol.ids import Generation, JobId, NodeId, Version
from medley.protocol.records import TERMINAL, Aborted, Committed, HeldoutMeasured, Record, StateChanged, Submitted
from medley.roles.allotment import PoolOptions
from medley.roles.coordinator import Coordinator
from medley.roles.run import Run
from medley.runtimes.simulated import facts
from medley.runtimes.simulated.arithmetic import Blocks
from medley.runtimes.simulated.coordinator import DOWN_NS, CoordinatorHost, Vault
from medley.runtimes.simulated.disk import Disk
from medley.runtimes.simulated.durations import Durations, Invented, charged
from medley.runtimes.simulated.facts import Fact, Observer
from medley.runtimes.simulated.job import Job, Kept, make_job
from medley.runtimes.simulated.kernel import MS, Kernel, S, seldom_collected
from medley.runtimes.simulated.network import Network
from medley.runtimes.simulated.node import Clock, Key, Node
from medley.runtimes.simulated.setup import Arrival, Machine, Setup, Workload
from medley.runtimes.simulated.shard_engine import ShardEngine
from medley.runtimes.simulated.stream import Meddle, Stream
from medley.runtimes.simulated.trace import Trace
from medley.runtimes.simulated.watch import COORDINATOR, Watcher

REMARKS_MAX = 400
CRASH_NS = 2 * S  # a machine that a fault ended comes back after this, on average


class World:
    """One pool and its stream of jobs, from a seed."""

    def __init__(
        self,
        setup: Setup,
        *,
        seed: int,
        trace: Path | Trace | None = None,
        observers: Sequence[Observer] = (),
        watchers: Sequence[Watcher] = (),
    ) -> None:
        """`trace`: a file for the story, or a `Trace` that somebody else keeps."""
        self.setup = setup
        self.kernel = Kernel(seed)
        self.network = Network(self.kernel)
        self.trace = trace if isinstance(trace, Trace) else Trace(trace, title=f"seed {seed}")
        self.observers, self.watchers = tuple(observers), tuple(watchers)
        self.rates: dict[str, float] = {}
        self.strike: Callable[[str, str], bool] | None = None
        self.meddle: Meddle | None = None
        self.happened: Counter[str] = Counter()
        self.struck: Counter[tuple[str, str]] = Counter()
        self.disk = Disk()
        self.clock = Clock()  # of the coordinator's machine
        self.host: CoordinatorHost | None = None
        self.nodes: dict[NodeId, Node] = {}
        self.sockets: dict[str, ShardEngine] = {}
        self.remarks: deque[tuple[str, fx.Effect]] = deque(maxlen=REMARKS_MAX)
        self.states: dict[JobId, str] = {}  # of each job, as its log has it
        self.over = 0  # jobs that are done, failed or cancelled
        self.submitted = 0
        self._arrivals = {a.job: a for a in setup.arrivals}
        self._jobs: dict[JobId, Job] = {}
        self._alike: dict[tuple[str, Workload], Job] = {}  # the newest of each kind
        self._kept: dict[JobId, Kept] = {}
        self._begun: dict[tuple[JobId, int], int] = {}  # when a lease's base was granted
        self._control: Counter[tuple[NodeId, NodeId]] = Counter()
        self._addresses = 0
        self._started = False
        self._jitter = self.kernel.random("jitter").random
        self.network.add(COORDINATOR, Conditions())

    # -- running ------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Machines join and jobs arrive at their times. `run` does this if nobody has."""
        if self._started:
            return
        self._started = True
        for machine in self.setup.machines:
            self.add(machine)
        self.start_coordinator()
        for arrival in sorted(self.setup.arrivals, key=lambda a: a.at_ns):
            self.kernel.at(arrival.at_ns, self.submit, arrival.job)

    def run(self, until_ns: int, stop: Callable[[], bool] | None = None) -> bool:
        """Go on until `stop` (asked after each event) or the time is over; True for the former."""
        self.start()
        with seldom_collected():
            stopped = self.kernel.run(until_ns, stop)
        self._flush_control()
        return stopped

    def is_over(self) -> bool:
        """Every job arrived, and ended."""
        return self.over >= len(self._arrivals) and self.submitted >= len(self._arrivals)

    def digest(self) -> str:
        return self.trace.digest()

    # -- chance -------------------------------------------------------------------------------------------------

    @property
    def armed(self) -> bool:
        """Whether anything can be struck at all."""
        return self.strike is not None or bool(self.rates)

    def jitter(self, mean_ns: int) -> int:
        return int(mean_ns * (0.5 + self._jitter()))

    def beat_ns(self, interval_ns: int) -> int:
        return int(interval_ns * (0.9 + 0.2 * self._jitter()))

    def chance(self, fault: str, operation: str) -> bool:
        """Does this fault strike this operation now?"""
        if self.strike is not None:
            struck = self.strike(fault, operation)
        else:
            rate = self.rates.get(fault, 0.0)
            struck = rate > 0 and self.kernel.random(f"fault {fault}").random() < rate
        if struck:
            self.met(fault, operation)
        return struck

    def met(self, fault: str, operation: str) -> None:
        """A fault met an operation: for the coverage table, the trace and the observers."""
        self.happened[fault] += 1
        self.struck[fault, operation] += 1
        self.note(COORDINATOR, "fault", f"{fault}: {operation}")
        self.emit(facts.Struck(self.kernel.now, fault, operation))

    # -- machines and links -------------------------------------------------------------------------------------

    def add(self, machine: Machine) -> Node:
        """Hang a machine into the network; it joins at its time, and leaves or is taken away at its time."""
        node = Node(self, machine, self.setup.heartbeat_ms * MS)
        self.nodes[machine.name] = node
        self.network.add(machine.name, machine.conditions, machine.overrides)
        self.kernel.at(machine.joins_ns, node.start)
        if machine.leaves_ns:
            self.kernel.at(machine.leaves_ns, self.remove, machine.name, "left")
        if machine.interruptions_per_h > 0:
            rate = machine.interruptions_per_h / (3600 * S)
            life_ns = int(self.kernel.random(f"interruptions {machine.name}").expovariate(rate))
            self.kernel.at(machine.joins_ns + life_ns, self.remove, machine.name, "interrupted")
        return node

    def remove(self, name: NodeId, state: str = "left") -> None:
        """A machine goes for good; one of the same name may be added later."""
        node = self.nodes.pop(name, None)
        if node is not None:
            node.leave(state)

    def crash(self, node: Node) -> None:
        """A machine dies and starts again a little later."""
        node.die()
        self.kernel.after(self.jitter(CRASH_NS), node.start)

    def attach(self, node: Node) -> Stream | None:
        """A new connection; None while nobody answers."""
        if self.host is None or self.network.is_blocked(node.name, COORDINATOR):
            return None
        if self.network.is_blocked(COORDINATOR, node.name):
            return None
        return Stream(self, node, self.host, str(node.boot))

    def new_address(self, name: NodeId, key: Key) -> m.Address:
        self._addresses += 1
        return m.Address(f"sim://{name}/{key[0]}/{key[1]}#{self._addresses}", f"key{self._addresses}")

    def node_of(self, address: m.Address) -> NodeId:
        """The machine on which this socket listens."""
        return address.endpoint[6:].split("/", 1)[0]

    def message_ns(self, source: NodeId, target: NodeId) -> int:
        """A small request on the tensor plane."""
        if source == target:
            return MS // 10
        return self.network.delay_ns(source, target, "ps_sync", 0)

    def move(
        self, source: NodeId, target: NodeId, nbytes: int, done: Callable[[bool], None], ends: tuple[str, ...]
    ) -> None:
        """Tensors from machine to machine; `done` is told whether they arrived."""
        if source not in self.network.accesses or target not in self.network.accesses:
            self.kernel.after(MS, done, False)
            return
        self.network.transfer(source, target, nbytes, done, ends)
        if self.observers and source != target:
            self.emit(facts.Moved(self.kernel.now, source, target, "tensors", nbytes))

    def count_control(self, source: NodeId, target: NodeId, nbytes: int) -> None:
        self._control[source, target] += nbytes

    def _flush_control(self) -> None:
        for (source, target), nbytes in self._control.items():
            self.emit(facts.Moved(self.kernel.now, source, target, "control", nbytes))
        self._control.clear()

    # -- the coordinator's process ------------------------------------------------------------------------------

    @property
    def coordinator(self) -> Coordinator | None:
        """The role of the newest life, while it lives."""
        return self.host.role if self.host is not None else None

    @property
    def vault(self) -> Vault | None:
        return self.host.vault if self.host is not None else None

    @property
    def streams(self) -> dict[NodeId, Stream]:
        return self.host.streams if self.host is not None else {}

    def start_coordinator(self, *, beside: bool = False) -> None:
        """A new life, unless there is one. `beside`: a second one comes up while the first still believes."""
        if self.host is not None and not beside:
            return
        term = self.disk.acquire_term()
        options = PoolOptions(self.setup.scheduler, self.setup.quotas, self.setup.heartbeat_ms)
        self.host = CoordinatorHost(self, term, Coordinator(term, options))
        self.note(COORDINATOR, "started", f"term {term}")
        self.host.start()
        for watcher in self.watchers:
            watcher.started(self)

    def kill_coordinator(self) -> None:
        if self.host is not None:
            self.happened["coordinator died"] += 1
            self.coordinator_died(self.host, "killed")

    def coordinator_died(self, host: CoordinatorHost, reason: str) -> None:
        """Its process is gone; unless another one has taken over, it is started again."""
        host.die()
        self.note(COORDINATOR, "died", reason)
        if host is self.host:
            self.host = None
            self.kernel.after(self.jitter(DOWN_NS), self.start_coordinator)

    def kill_vault(self) -> None:
        if self.host is not None:
            self.host.kill_vault()

    # -- jobs ---------------------------------------------------------------------------------------------------

    def submit(self, job: JobId) -> None:
        """What a person's `medley train` does: it knocks until somebody answers."""
        host = self.host
        if host is None:
            self.kernel.after(S, self.submit, job)
            return
        host.handle(Submit(job, text(self._arrivals[job].spec), self.clock.wall(self.kernel.now)))
        if self.host is None or job not in self.host.role.runs:
            self.kernel.after(S, self.submit, job)

    def cancel(self, job: JobId) -> None:
        if self.host is not None:
            self.host.handle(Cancel(job, self.clock.wall(self.kernel.now)))

    def resume(self, job: JobId) -> None:
        if self.host is not None:
            self.host.handle(Resume(job, self.clock.wall(self.kernel.now)))

    def arrive(self, arrival: Arrival) -> None:
        """One more job, now, beyond those of the setup."""
        self._arrivals[arrival.job] = arrival
        self.submit(arrival.job)

    def run_of(self, job: JobId) -> Run | None:
        """The coordinator's side of a job, while there is a coordinator."""
        return self.host.role.runs.get(job) if self.host is not None else None

    def job_named(self, name: JobId) -> Job:
        job = self._jobs.get(name)
        if job is None:
            arrival = self._arrivals[name]
            alike = (text(arrival.spec), arrival.workload)
            job = self._jobs[name] = make_job(arrival, self.setup.arithmetic, self._alike.get(alike))
            self._alike[alike] = job
        return job

    def kept(self, job: JobId) -> Kept:
        """What the vault has of a job."""
        found = self._kept.get(job)
        if found is None:
            found = self._kept[job] = Kept()
        return found

    def durations(self, node: Node, job: Job, *, shard: bool) -> Durations:
        if self.setup.arithmetic == "proof":
            return Invented(self.kernel.random("work"))
        random = self.kernel.random(f"work {node.name}")
        return charged(node.machine.device, job.plan, job.arrival.workload, random, shard=shard)

    # -- what is told about it ----------------------------------------------------------------------------------

    def emit(self, fact: Fact) -> None:
        for observer in self.observers:
            observer(fact)

    def note(self, who: str, kind: str, what: str) -> None:
        self.trace.note(self.kernel.now, self.kernel.cause, who, kind.replace(" ", "-"), what)

    def node_is(self, name: NodeId, state: str) -> None:
        self.note(name, state, f"the machine is {state}")
        self.emit(facts.NodeState(self.kernel.now, name, state))

    def was_busy(self, node: NodeId, job: JobId, what: str, start_ns: int) -> None:
        if self.observers:
            self.emit(facts.Busy(self.kernel.now, start_ns, node, job, what))

    def remark(self, who: str, effect: fx.Explain | fx.Reject) -> None:
        self.remarks.append((who, effect))
        if self.observers and isinstance(effect, fx.Explain):
            self.emit(facts.Decided(self.kernel.now, effect.subject, effect.text))

    def handled(self, who: NodeId, key: Key | None, event: Event, effects: Sequence[fx.Effect]) -> None:
        """A role handled an event; what its effects lead to has this event as its cause."""
        kernel, trace = self.kernel, self.trace
        number = trace.handled(kernel.now, who, event, len(effects))
        if trace.lines is not None:
            place = f"{key[0]}/{key[1] if key[1] >= 0 else 'w'}" if key is not None else _job_of(event)
            trace.line(kernel.now, kernel.cause, who, place, event, effects)
        kernel.cause = number

    def watch_handled(self, who: NodeId, key: Key | None, event: Event, effects: Sequence[fx.Effect]) -> None:
        for watcher in self.watchers:
            watcher.handled(self, who, key, event, effects)

    def persisted(self, stream: str, record: Record, body: bytes) -> None:
        """A record is durable."""
        self.trace.mix(body)
        for watcher in self.watchers:
            watcher.persisted(self, stream, record)
        job = stream.removeprefix("job/")
        if isinstance(record, Submitted):
            self.submitted += 1
            self._state(job, "queued", "")
        elif isinstance(record, StateChanged):
            self._state(job, record.state, record.reason)
        elif self.observers:
            self._observe(job, record)

    def _state(self, job: JobId, state: str, reason: str) -> None:
        was = self.states.get(job, "")
        self.states[job] = state
        self.over += (state in TERMINAL) - (was in TERMINAL)
        self.emit(facts.JobState(self.kernel.now, job, state, reason))

    def _observe(self, job: JobId, record: Record) -> None:
        now = self.kernel.now
        match record:
            case Committed():
                begun = [self._begun.pop((job, n), now) for member in record.members for n in member.leases]
                self.emit(
                    facts.Committed(
                        now,
                        job,
                        record.number,
                        tuple(member.node for member in record.members),
                        tuple(member.staleness for member in record.members),
                        record.samples,
                        record.tokens,
                        record.loss,
                        min(begun, default=now),
                    )
                )
            case Aborted(_, node, _, carry, reason):
                self.emit(facts.Refused(now, job, node, "carry" if carry else "drop", reason))
            case HeldoutMeasured():
                self.emit(facts.Evaluation(now, job, record.version, record.loss, record.accuracy))
            case _:
                pass

    def sent(self, message: m.ToNode) -> None:
        if self.observers and isinstance(message, m.Base):
            self._begun[message.job, message.lease] = self.kernel.now

    def watch_pulled(self, job: JobId, generation: Generation, version: Version, blocks: Blocks) -> None:
        for watcher in self.watchers:
            watcher.pulled(self, job, generation, version, blocks)

    def watch_applied(self, engine: ShardEngine) -> None:
        if not self.watchers:
            return
        blocks = engine.arithmetic.read(engine.version)
        assert blocks is not None, "the present version can be read"
        for watcher in self.watchers:
            watcher.applied(self, engine.base.job.name, engine.shard, engine.generation, engine.version, blocks)

    def watch_sealed(self, command: e.SealCheckpoint, blocks: Blocks) -> None:
        for watcher in self.watchers:
            watcher.sealed(self, command, blocks)

    def watch_exported(self, job: JobId, version: Version, blocks: Blocks) -> None:
        for watcher in self.watchers:
            watcher.exported(self, job, version, blocks)


def _job_of(event: Event) -> str:
    inner = getattr(event, "message", None) or getattr(event, "report", None) or event
    return str(getattr(inner, "job", "-"))
