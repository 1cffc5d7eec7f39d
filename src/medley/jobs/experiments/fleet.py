"""Machines and jobs of one run, drawn from the experiment.

Draws come from generators seeded by (seed, repeat, group, key): another group, or another key, moves none of them, and
every point of a sweep meets the same draws.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from random import Random

from medley.jobs.experiments.spec import Experiment, Group, Job, Numbers, Words
from medley.policies.devices import DEVICES, Device, described
from medley.protocol.conditions import PRESETS, Conditions
from medley.protocol.ids import NS_PER_S
from medley.protocol.spec import Data, JobSpec
from medley.runtimes.simulated.setup import ArithmeticKind, Arrival, Machine, Setup, Workload

ARITHMETIC: dict[str, ArithmeticKind] = {"modelled": "sizes", "real": "real", "proof": "proof"}
PARAMETERS, TOKENS = 1_000_000, 256  # of a modelled model that says nothing
TASK_TOKENS = {"digits-mlp": 1, "lstm": 32, "llama": 32}  # of one sample
SLOWNESS_LEAST = 0.001  # also where a distribution's tail goes further
_SMALL_BLOCKS = 4096  # elements: of a real tiny task


def setup_of(experiment: Experiment, repeat: int) -> Setup:
    """The world of one repeat. The experiment must have passed `check`."""
    return Setup(
        machines=tuple(machines(experiment, repeat)),
        arrivals=tuple(arrivals(experiment, repeat)),
        scheduler=experiment.scheduler,
        quotas=experiment.quotas,
        arithmetic=ARITHMETIC[experiment.engine],
        heartbeat_ms=experiment.heartbeat_ms,
    )


def machines(experiment: Experiment, repeat: int) -> Iterator[Machine]:
    presets = presets_of(experiment)
    devices = devices_of(experiment)
    for name, group in experiment.fleet.items():
        dice = Dice(experiment.seed, repeat, name)
        for number, one in enumerate(names_of(name, group.count)):
            yield _machine(experiment, one, group, number, dice, presets, devices)


def names_of(group: str, count: int) -> list[str]:
    """Of its machines; one alone has the group's own."""
    digits = len(str(count - 1))
    return [f"{group}-{number:0{digits}d}" for number in range(count)] if count > 1 else [group] * count


def _machine(
    experiment: Experiment,
    name: str,
    group: Group,
    number: int,
    dice: Dice,
    presets: dict[str, Conditions],
    devices: dict[str, Device],
) -> Machine:
    profile = dice.word("network", group.network, number) or experiment.network.profile
    conditions = presets[profile]
    overrides = experiment.network.overrides | group.overrides
    place = (number, group.count)
    return Machine(
        name=name,
        device=devices[dice.word("device", group.device, number)],
        conditions=conditions,
        overrides={kind: presets[preset] for kind, preset in overrides.items()},
        worker=group.worker,
        shard=group.shard,
        slowness=max(dice.number("slowness", group.slowness, *place), SLOWNESS_LEAST),
        spot=group.spot,
        interruptions_per_h=group.interruptions_per_h,
        joins_ns=int(dice.number("joins_s", group.joins_s, *place) * NS_PER_S),
        leaves_ns=int(dice.number("leaves_s", group.leaves_s, *place) * NS_PER_S),
    )


def presets_of(experiment: Experiment) -> dict[str, Conditions]:
    return PRESETS | experiment.network.presets


def devices_of(experiment: Experiment) -> dict[str, Device]:
    """The library and the experiment's own, by name. Raises UserError for a description that says nothing."""
    own = {name: replace(described(data, f"devices.{name}"), kind=name) for name, data in experiment.devices.items()}
    return DEVICES | own


class Dice:
    """The draws of one group; one generator for each key."""

    def __init__(self, seed: int, repeat: int, name: str) -> None:
        self._seed = f"{seed}/{repeat}/{name}"
        self._random: dict[str, Random] = {}

    def _of(self, key: str) -> Random:
        return self._random.setdefault(key, Random(f"{self._seed}/{key}"))

    def word(self, key: str, words: Words, number: int) -> str:
        if words.kind == "fixed":
            return words.values[0]
        return self._of(key).choices(words.values, words.weights or None)[0]

    def number(self, key: str, numbers: Numbers, number: int, count: int) -> float:
        """The value of machine `number` of `count`. Call once a machine, in order."""
        values, random = numbers.values, self._of(key)
        match numbers.kind:
            case "choice":
                return random.choices(values, numbers.weights or None)[0]
            case "spread":
                share = number / (count - 1) if count > 1 else 0.0
                return float(values[0] * (values[1] / values[0]) ** share)
            case "uniform":
                return random.uniform(*values)
            case "log_uniform":
                return float(values[0] * (values[1] / values[0]) ** random.random())
            case "normal":
                return max(random.gauss(*values), 0.0)
            case "exponential":
                return random.expovariate(1 / values[0])
            case _:
                return values[0]


# -- jobs ---------------------------------------------------------------------------------------------------------


def arrivals(experiment: Experiment, repeat: int) -> Iterator[Arrival]:
    """The stream of jobs; each with a seed of its own."""
    stream = experiment.arrivals
    if not stream.count:
        for number, (name, job) in enumerate(experiment.jobs.items()):
            yield _arrival(experiment, name, job, int(job.at_s * NS_PER_S), repeat, number)
        return
    random = Random(f"{experiment.seed}/{repeat}/arrivals")
    kinds = list(experiment.jobs.items())
    weights = [job.weight for _, job in kinds]
    at_s = 0.0
    for number in range(stream.count):
        if stream.per_h and number:
            at_s += random.expovariate(stream.per_h / 3600)
        name, job = random.choices(kinds, weights)[0]
        digits = len(str(stream.count - 1))
        yield _arrival(experiment, f"{name}-{number:0{digits}d}", job, int(at_s * NS_PER_S), repeat, number)


def _arrival(experiment: Experiment, name: str, job: Job, at_ns: int, repeat: int, number: int) -> Arrival:
    deadline_ns = at_ns + int(job.deadline_s * NS_PER_S) if job.deadline_s else 0
    return Arrival(name, spec_of(name, job, repeat, number), workload_of(experiment, job), at_ns, deadline_ns)


def spec_of(name: str, job: Job, repeat: int = 0, number: int = 0) -> JobSpec:
    """The production job that this stands for; its order of samples differs from repeat to repeat."""
    train = replace(job.train, seed=job.train.seed + 1000 * repeat + number)
    schedule = job.schedule
    if job.deadline_s and not schedule.deadline_minutes:
        schedule = replace(schedule, deadline_minutes=job.deadline_s / 60)
    placement = job.placement
    if job.model.task and placement.block_elements > _SMALL_BLOCKS:
        placement = replace(placement, block_elements=_SMALL_BLOCKS)
    return JobSpec(
        name=name,
        data=Data(heldout_samples=job.model.heldout),
        train=train,
        placement=placement,
        checkpoint=job.checkpoint,
        schedule=schedule,
    )


def workload_of(experiment: Experiment, job: Job) -> Workload:
    model = job.model
    return Workload(
        samples=model.samples,
        heldout=model.heldout,
        parameters=parameters_of(job),
        frozen_parameters=model.frozen_parameters,
        tokens_per_sample=tokens_of(job),
        task=model.task if experiment.engine == "real" else "",
    )


def parameters_of(job: Job) -> int:
    """That time is charged for; 0: as many as the task has."""
    return job.model.parameters or (0 if job.model.task else PARAMETERS)


def tokens_of(job: Job) -> int:
    """Of one sample."""
    return job.model.tokens_per_sample or TASK_TOKENS.get(job.model.task, TOKENS)
