"""Whether an experiment's values make sense: ranges first, then names, then whether anything could run at all.

Promises: the first thing that is wrong becomes one UserError that names the key, its value and what would be right.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import fields
from typing import Any

from medley.jobs.check import NAME
from medley.jobs.check import check as check_job
from medley.jobs.experiments import criteria
from medley.jobs.experiments.fleet import (
    SLOWNESS_LEAST,
    devices_of,
    names_of,
    parameters_of,
    presets_of,
    spec_of,
    tokens_of,
)
from medley.jobs.experiments.reading import Origin
from medley.jobs.experiments.spec import MAX_ARRIVALS, MAX_MACHINES, Experiment, Group, Job, Numbers, Words
from medley.jobs.experiments.tally import COLUMNS
from medley.policies.costs import PROCESS_NBYTES, shard_nbytes, size_of, worker_nbytes
from medley.policies.devices import Device
from medley.policies.scheduling.names import NAMES as SCHEDULERS
from medley.protocol.conditions import CLASSES, Conditions
from medley.protocol.errors import UserError, did_you_mean
from medley.runtimes.simulated.faults import FAULTS
from medley.runtimes.simulated.watch import COORDINATOR

Path = tuple[str, ...]
_TITLE = re.compile(r"[^/\\\x00-\x1f]{1,100}")
Wrong = tuple[Path, str]
_INF = math.inf

_RANGES: tuple[tuple[str, float, float], ...] = (
    ("seed", 0, (1 << 53) - 1),
    ("repeats", 1, 1000),
    ("until_s", 1, 366 * 86_400),
    ("heartbeat_ms", 50, 600_000),
    ("target_loss", 0, _INF),
    ("arrivals.count", 0, MAX_ARRIVALS),
    ("arrivals.per_h", 0, 1e6),
    ("autoscaling.max_nodes", 0, MAX_MACHINES),
    ("autoscaling.min_nodes", 0, MAX_MACHINES),
    ("autoscaling.usd_per_h", 0, _INF),
    ("autoscaling.every_s", 1, 86_400),
    ("autoscaling.drain_s", 1, 366 * 86_400),
    ("autoscaling.headroom", 0, 100),
    ("autoscaling.settle_s", 0, 86_400),
    ("autoscaling.cooldown_s", 0, 86_400),
)
_GROUP_RANGES: tuple[tuple[str, float, float], ...] = (
    ("count", 0, MAX_MACHINES),
    ("slowness", SLOWNESS_LEAST, 10_000),
    ("interruptions_per_h", 0, 3600),
    ("joins_s", 0, 366 * 86_400),
    ("leaves_s", 0, 366 * 86_400),
)
_OFFER_RANGES: tuple[tuple[str, float, float], ...] = (
    ("available", 0, MAX_MACHINES),
    ("interruptions_per_h", 0, 3600),
    ("start_s", 0, 86_400),
)
_JOB_RANGES: tuple[tuple[str, float, float], ...] = (
    ("model.parameters", 0, 1 << 42),
    ("model.frozen_parameters", 0, 1 << 42),
    ("model.tokens_per_sample", 0, 1 << 20),
    ("model.samples", 1, 1 << 40),
    ("model.heldout", 0, 1 << 30),
    ("at_s", 0, 366 * 86_400),
    ("deadline_s", 0, 366 * 86_400),
    ("weight", 0, 1e9),
)
_CONDITION_RANGES: dict[str, tuple[float, float]] = {
    "rtt_ms": (0, 600_000),
    "jitter_ms": (0, 600_000),
    "loss": (0, 0.99),
    "duplication": (0, 0.99),
    "compute_factor": (0.001, 10_000),
}


# Besides 0: less is nothing that a link does, and more than arithmetic can bear.
_CONDITION_LEAST: dict[str, float] = {
    "rtt_ms": 1e-3,
    "jitter_ms": 1e-3,
    "loss": 1e-9,
    "duplication": 1e-9,
    "up_bytes_per_s": 1.0,
    "down_bytes_per_s": 1.0,
    "up_s": 1e-3,
    "down_s": 1e-3,
}
ARRIVALS_LEAST_PER_H = 1e-6


def check(experiment: Experiment, origin: Origin) -> None:
    """Raises UserError, one sentence, for the first thing that cannot work."""
    try:
        devices_of(experiment)
    except UserError as error:
        origin.refuse(("devices",), str(error))
    for path, sentence in _wrong(experiment):
        origin.refuse(path, sentence)
    for name, job in experiment.jobs.items():
        try:
            check_job(spec_of("job", job))
        except UserError as error:
            origin.refuse(("jobs", name), f"jobs.{name}: {error}")


def _wrong(experiment: Experiment) -> Iterator[Wrong]:
    yield from _ranges(experiment, _RANGES, ())
    yield from _named(experiment)
    for name, conditions in experiment.network.presets.items():
        yield from _conditions(conditions, ("network", "presets", name))
    yield from _network(experiment)
    for name, group in experiment.fleet.items():
        yield from _ranges(group, _GROUP_RANGES, ("fleet", name))
        yield from _group(experiment, name, group)
    for name, offer in experiment.autoscaling.offers.items():
        yield from _ranges(offer, _OFFER_RANGES, ("autoscaling", "offers", name))
    yield from _scaling(experiment)
    yield from _fleet(experiment)
    for name, job in experiment.jobs.items():
        yield from _ranges(job, _JOB_RANGES, ("jobs", name))
        yield from _job(experiment, name, job)
    yield from _names(experiment)
    yield from _success(experiment)
    yield from _rooms(experiment)


def _ranges(tree: Any, ranges: Iterable[tuple[str, float, float]], path: Path) -> Iterator[Wrong]:
    for key, low, high in ranges:
        value = tree
        for part in key.split("."):
            value = getattr(value, part)
        for one in value.values if isinstance(value, Numbers) else (value,):
            if not low <= one <= high:
                here = (*path, *key.split("."))
                limit = f"at least {low:g}" if one < low or high == _INF else f"at most {high:g}"
                yield here, f"{'.'.join(here)} is {one:g}, but must be {limit}"


def _named(experiment: Experiment) -> Iterator[Wrong]:
    """Results lie below the experiment's name; machines and jobs are told by theirs, in traces and addresses."""
    if not _TITLE.fullmatch(experiment.name) or experiment.name in (".", ".."):
        found = f"name is '{experiment.name[:70]}'"
        yield ("name",), f"{found}, but must be the name of a directory: 1 to 100 characters, no '/'"
    groups = (("fleet",), experiment.fleet), (("jobs",), experiment.jobs)
    for path, names in (*groups, (("autoscaling", "offers"), experiment.autoscaling.offers)):
        for name in names:
            if not NAME.fullmatch(name):
                found = f"{'.'.join(path)} has the name '{name[:70]}'"
                rule = "names are 1 to 63 letters, digits, '.', '_' and '-', beginning with a letter or a digit"
                yield (*path, name), f"{found}, but {rule}"
    yield from _machine_names(experiment)


def _machine_names(experiment: Experiment) -> Iterator[Wrong]:
    seen: dict[str, str] = {COORDINATOR: "the coordinator"}
    rented = re.compile("|".join(rf"{re.escape(name)}-\d+" for name in experiment.autoscaling.offers) or "(?!)")
    for group in experiment.fleet:
        for name in names_of(group, min(experiment.fleet[group].count, MAX_MACHINES)):
            whose = seen.get(name) or ("a machine of autoscaling.offers" if rented.fullmatch(name) else "")
            if whose:
                found = f"fleet.{group} has a machine '{name}', as {whose} is called"
                yield ("fleet", group), f"{found}: choose another name"
                return
            seen[name] = f"one of fleet.{group}"


def _conditions(conditions: Conditions, path: Path) -> Iterator[Wrong]:
    for one in fields(conditions):
        value = getattr(conditions, one.name)
        low, high = _CONDITION_RANGES.get(one.name, (0, 1e15))
        least = _CONDITION_LEAST.get(one.name, low)
        if not low <= value <= high:
            limit = f"at least {low:g}" if value < low else f"at most {high:g}"
            yield (*path, one.name), f"{'.'.join((*path, one.name))} is {value:g}, but must be {limit}"
        if 0 < value < least:
            yield (*path, one.name), f"{'.'.join((*path, one.name))} is {value:g}, but must be 0 or at least {least:g}"
    if conditions.down_s > 0 and not conditions.up_s > 0:
        yield (*path, "up_s"), f"{'.'.join(path)} is down for {conditions.down_s:g} s and never up: set up_s as well"
    if conditions.jitter_ms > 0 and not conditions.rtt_ms > 0:
        sentence = f"{'.'.join(path)} has jitter_ms, but a delay that varies needs a mean: set rtt_ms as well"
        yield (*path, "rtt_ms"), sentence


def _network(experiment: Experiment) -> Iterator[Wrong]:
    presets = presets_of(experiment)
    if experiment.network.profile not in presets:
        profile = experiment.network.profile
        sentence = f"network.profile: there is no preset '{profile}'; {did_you_mean(profile, presets)}"
        yield ("network", "profile"), sentence
    yield from _overrides(experiment.network.overrides, presets, ("network", "overrides"))


def _overrides(overrides: dict[str, str], presets: Iterable[str], path: Path) -> Iterator[Wrong]:
    known = list(presets)
    for kind, preset in overrides.items():
        here = (*path, kind)
        if kind not in CLASSES:
            yield here, f"{'.'.join(path)}: there is no class of traffic '{kind}'; {did_you_mean(kind, CLASSES)}"
        if preset not in known:
            yield here, f"{'.'.join(here)}: there is no preset '{preset}'; {did_you_mean(preset, known)}"


def _group(experiment: Experiment, name: str, group: Group) -> Iterator[Wrong]:
    path = ("fleet", name)
    yield from _known(group.device, devices_of(experiment), "device", (*path, "device"))
    named = [one for one in group.network.values if one]
    yield from _known(Words(values=tuple(named)), presets_of(experiment), "preset", (*path, "network"))
    yield from _overrides(group.overrides, presets_of(experiment), (*path, "overrides"))
    for key in ("slowness", "joins_s", "leaves_s"):
        numbers: Numbers = getattr(group, key)
        if numbers.kind in ("spread", "log_uniform", "exponential") and min(numbers.values) <= 0:
            yield (*path, key), f"{'.'.join(path)}.{key}: {numbers.kind} needs values above 0"
        if numbers.kind in ("uniform", "log_uniform", "spread") and numbers.values[0] > numbers.values[1]:
            yield (*path, key), f"{'.'.join(path)}.{key}: {numbers.kind} is from the smaller value to the larger one"
    if group.interruptions_per_h and not group.spot:
        where = (*path, "interruptions_per_h")
        yield where, f"{'.'.join(where)} is given, but only spot machines are taken away: set spot to true"


def _known(words: Words, known: Iterable[str], what: str, path: Path) -> Iterator[Wrong]:
    names = list(known)
    for one in words.values:
        if one not in names:
            yield path, f"{'.'.join(path)}: there is no {what} '{one}'; {did_you_mean(one, names)}"


def _fleet(experiment: Experiment) -> Iterator[Wrong]:
    path, groups = ("fleet",), experiment.fleet.values()
    many = sum(group.count for group in groups)
    if many == 0:
        yield path, "fleet has no machine: write at least 'fleet: {workers: {count: 4}}'"
    if many > MAX_MACHINES:
        yield path, f"fleet has {many} machines, but at most {MAX_MACHINES} are allowed"
    rents = experiment.autoscaling.max_nodes > 0 and bool(experiment.autoscaling.offers)
    for key, does in (("worker", "trains"), ("shard", "holds parameters")):
        if (
            many
            and not (rents and key == "worker")
            and not any(getattr(group, key) and group.count for group in groups)
        ):
            yield path, f"fleet has no machine that {does}: leave '{key}' of one group at true"


def _scaling(experiment: Experiment) -> Iterator[Wrong]:
    options, path = experiment.autoscaling, ("autoscaling",)
    if options.max_nodes and not options.offers:
        yield (
            path,
            "autoscaling.max_nodes is given, but nothing can be rented: describe a machine in autoscaling.offers",
        )
    if options.max_nodes and options.min_nodes > options.max_nodes:
        few = f"autoscaling.min_nodes is {options.min_nodes}"
        yield (*path, "min_nodes"), f"{few}, but at most {options.max_nodes} (max_nodes) are rented"
    for name, one in options.offers.items():
        here = (*path, "offers", name)
        yield from _known(Words(values=(one.device,)), devices_of(experiment), "device", (*here, "device"))
        if one.network:
            yield from _known(Words(values=(one.network,)), presets_of(experiment), "preset", (*here, "network"))
        if one.interruptions_per_h and not one.spot:
            yield here, f"{'.'.join(here)}: only spot machines are taken away: set spot to true"


def _job(experiment: Experiment, name: str, job: Job) -> Iterator[Wrong]:
    path = ("jobs", name)
    if experiment.engine == "real" and not job.model.task:
        yield (
            (*path, "model"),
            f"jobs.{name}.model.task is empty, but engine 'real' trains a tiny task: set digits-mlp, lstm or llama",
        )
    if experiment.engine != "real" and job.model.task:
        yield (
            (*path, "model", "task"),
            f"jobs.{name}.model.task is '{job.model.task}', but engine '{experiment.engine}' computes none: "
            "set engine to 'real'",
        )
    train = sum(g.count for g in experiment.fleet.values() if g.worker)
    rented = experiment.autoscaling.max_nodes if experiment.autoscaling.offers else 0
    if job.schedule.workers_min > train + rented:
        many = (
            f"{train + rented} machines of the fleet train" if train + rented > 1 else "one machine of the fleet trains"
        )
        yield (*path, "schedule"), f"jobs.{name}.schedule.workers_min is {job.schedule.workers_min}, but only {many}"
    if job.placement.replication == 2 and sum(g.count for g in experiment.fleet.values() if g.shard) < 2:
        yield (*path, "placement"), f"jobs.{name}.placement.replication is 2, but only one machine may hold parameters"


def _names(experiment: Experiment) -> Iterator[Wrong]:
    if experiment.target_loss and experiment.engine != "real":
        yield (
            ("target_loss",),
            f"target_loss is given, but engine '{experiment.engine}' computes no loss: set engine to 'real'",
        )
    if not experiment.jobs:
        yield ("jobs",), "jobs is empty: write at least 'jobs: {train: {}}'"
    if experiment.scheduler not in SCHEDULERS:
        tail = did_you_mean(experiment.scheduler, SCHEDULERS)
        yield ("scheduler",), f"scheduler: there is no scheduler '{experiment.scheduler}'; {tail}"
    for queue, limit in experiment.quotas.items():
        if not 1 <= limit <= MAX_MACHINES:
            yield ("quotas", queue), f"quotas.{queue} is {limit}, but must be from 1 to {MAX_MACHINES} machines"
    for name, rate in experiment.faults.items():
        if name not in FAULTS:
            yield ("faults", name), f"faults: there is no fault '{name}'; {did_you_mean(name, FAULTS)}"
        elif not 0 < rate <= (most := 10_000 if "minute" in FAULTS[name].unit else 1):
            right = f"above 0 and at most {most} ({FAULTS[name].unit})"
            yield ("faults", name), f"faults.{name} is {rate:g}, but must be {right}"
    stream = experiment.arrivals
    if stream.count and experiment.jobs and not any(job.weight for job in experiment.jobs.values()):
        yield ("arrivals",), "arrivals has no job to draw: give one of jobs a weight above 0"
    if 0 < stream.per_h < ARRIVALS_LEAST_PER_H:
        least = f"0 or at least {ARRIVALS_LEAST_PER_H:g}"
        yield ("arrivals", "per_h"), f"arrivals.per_h is {stream.per_h:g}, but must be {least}"
    if stream.per_h and not stream.count:
        yield ("arrivals", "per_h"), "arrivals.per_h is given without arrivals.count: say how many jobs arrive"


def _success(experiment: Experiment) -> Iterator[Wrong]:
    for text in experiment.success:
        try:
            criteria.parse(text, COLUMNS)
        except UserError as error:
            yield ("success",), f"success: {error}"


def _rooms(experiment: Experiment) -> Iterator[Wrong]:
    """A fleet that can hold no task: no machine that trains has the memory, or none that keeps parameters."""
    devices = devices_of(experiment)
    for name, job in experiment.jobs.items():
        if experiment.engine != "modelled":
            continue
        for role, needs in (("train", _worker_needs), ("keep the parameters of", _shard_needs)):
            able = [group for group in experiment.fleet.values() if _serves(group, role)]
            kinds = sorted({kind for group in able for kind in group.device.values if group.count})
            if role == "train" and experiment.autoscaling.max_nodes:
                kinds = sorted({*kinds, *(one.device for one in experiment.autoscaling.offers.values())})
            if kinds and all(needs(job, devices[kind]) > devices[kind].memory_bytes for kind in kinds):
                most = max((devices[kind] for kind in kinds), key=lambda one: one.memory_bytes)
                yield (
                    ("fleet",),
                    f"no machine of the fleet can {role} jobs.{name}: it needs {_gib(needs(job, most))} GiB, and the "
                    f"largest ({most.kind}) has {_gib(most.memory_bytes)} GiB",
                )


def _serves(group: Group, role: str) -> bool:
    return group.worker if role == "train" else group.shard


def _worker_needs(job: Job, device: Device) -> int:
    tokens = tokens_of(job)
    size = size_of(spec_of("job", job), parameters_of(job), job.model.frozen_parameters, tokens, device)
    return max(worker_nbytes(size, job.train, tokens), PROCESS_NBYTES)


def _shard_needs(job: Job, device: Device) -> int:
    return shard_nbytes(-(-parameters_of(job) // job.placement.shards), job.train, 1)


def _gib(nbytes: float) -> str:
    return f"{nbytes / (1 << 30):.1f}"
