"""The autoscaling policy at work in a world: every so often it is asked, and machines come and go as it says.

What is asked for joins after its offer's `start_s`; what is not needed any more leaves; spot machines are taken away by
the world. Machines that come only train: parameters stay with the fleet that was written out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf

from medley.jobs.experiments.fleet import devices_of, presets_of
from medley.jobs.experiments.spec import Experiment, Offered
from medley.policies import autoscaling as policy
from medley.policies.costs import SPOT_SHARE, lease_ns, pull_nbytes, push_nbytes, size_of
from medley.policies.devices import Device
from medley.protocol.conditions import Conditions, goodput_bytes_per_s
from medley.protocol.ids import NS_PER_S, JobId
from medley.runtimes.simulated import facts as f
from medley.runtimes.simulated.setup import Arrival, Machine, Setup
from medley.runtimes.simulated.world import World

GONE = ("left", "interrupted")


@dataclass(slots=True)
class Scaler:
    """An observer of one world that also acts in it; `arrived` is told of each machine before it joins."""

    experiment: Experiment
    setup: Setup
    arrived: Callable[[Machine], None]
    world: World | None = None
    samples: Counter[JobId] = field(default_factory=Counter)
    over: set[JobId] = field(default_factory=set)
    running: dict[str, str] = field(default_factory=dict)  # machine: kind of offer
    asked: Counter[str] = field(default_factory=Counter)  # machines of each kind so far
    memory: policy.Memory = field(default_factory=policy.Memory)

    def note(self, fact: f.Fact) -> None:
        match fact:
            case f.Committed():
                self.samples[fact.job] += fact.samples
            case f.JobState(_, job, "done" | "failed" | "cancelled"):
                self.over.add(job)
            case f.NodeState(_, node, state) if state in GONE:
                self.running.pop(node, None)

    def begin(self, world: World) -> None:
        self.world = world
        self._tick()

    def _tick(self) -> None:
        world, options = self.world, self.experiment.autoscaling
        assert world is not None
        now_s = world.kernel.now / NS_PER_S
        demands = [self._demand(one) for one in self.setup.arrivals if self._waits(one, world.kernel.now)]
        limits = policy.Limits(options.max_nodes, options.usd_per_h or inf, inf, options.min_nodes)
        habits = policy.Habits(options.drain_s, options.headroom, options.settle_s, options.cooldown_s)
        running = Counter(self.running.values())
        decided = policy.scale(now_s, demands, self._offers(), running, limits, habits, self.memory)
        self.memory = decided.plan.memory
        for kind in sorted({*running, *decided.plan.nodes}):
            self._bring(kind, decided.plan.nodes.get(kind, 0), running[kind], decided.reason)
        world.kernel.after(int(options.every_s * NS_PER_S), self._tick)

    def _waits(self, arrival: Arrival, now_ns: int) -> bool:
        return arrival.at_ns <= now_ns and arrival.job not in self.over

    def _demand(self, arrival: Arrival) -> policy.Demand:
        work = arrival.workload
        left = work.samples * arrival.spec.train.epochs - self.samples[arrival.job]
        deadline_s = arrival.deadline_ns / NS_PER_S if arrival.deadline_ns else inf
        return policy.Demand(arrival.job, max(left, 1) * work.tokens_per_sample, deadline_s)

    # -- what can be had ----------------------------------------------------------------------------------------

    def _offers(self) -> list[policy.Offer]:
        devices = devices_of(self.experiment)
        offers = self.experiment.autoscaling.offers
        return [self._offer(kind, one, devices[one.device]) for kind, one in offers.items()]

    def _offer(self, kind: str, one: Offered, device: Device) -> policy.Offer:
        rate = min(tokens_per_s(arrival, device, self._conditions(one)) for arrival in self.setup.arrivals)
        price = device.usd_per_h * (SPOT_SHARE if one.spot else 1.0)
        return policy.Offer(kind, rate, price, one.available, one.interruptions_per_h, one.start_s)

    def _conditions(self, one: Offered) -> Conditions:
        return presets_of(self.experiment)[one.network or self.experiment.network.profile]

    # -- machines come and go -----------------------------------------------------------------------------------

    def _bring(self, kind: str, wanted: int, there: int, reason: str) -> None:
        world = self.world
        assert world is not None
        for _ in range(wanted - there):
            machine = self._machine(kind, world.kernel.now)
            self.running[machine.name] = kind
            self.arrived(machine)
            world.emit(f.NodeState(world.kernel.now, machine.name, "wanted"))
            world.add(machine)
        newest = [name for name, one in self.running.items() if one == kind][::-1]
        for name in newest[: max(there - wanted, 0)]:
            world.remove(name, "left")
            self.running.pop(name, None)
        if wanted != there:
            world.emit(f.Decided(world.kernel.now, "autoscaling", f"{there} to {wanted} x {kind}: {reason}"))

    def _machine(self, kind: str, now_ns: int) -> Machine:
        one = self.experiment.autoscaling.offers[kind]
        self.asked[kind] += 1
        return Machine(
            name=f"{kind}-{self.asked[kind]}",
            device=devices_of(self.experiment)[one.device],
            conditions=self._conditions(one),
            shard=False,
            spot=one.spot,
            interruptions_per_h=one.interruptions_per_h,
            joins_ns=now_ns + int(one.start_s * NS_PER_S),
        )


def tokens_per_s(arrival: Arrival, device: Device, conditions: Conditions) -> float:
    """What one machine adds to a job: a lease's computation, its pull and its push, one after the other."""
    work, train = arrival.workload, arrival.spec.train
    size = size_of(arrival.spec, work.parameters, work.frozen_parameters, work.tokens_per_sample, device)
    steps = max(train.sync.local_steps, 1)
    samples = train.batch_samples * steps
    moved_s = pull_nbytes(work.parameters) / goodput_bytes_per_s(conditions, "down")
    moved_s += push_nbytes(train.compression, [work.parameters]) / goodput_bytes_per_s(conditions, "up")
    return samples * work.tokens_per_sample / (lease_ns(device, size, train, samples, steps) / NS_PER_S + moved_s)
