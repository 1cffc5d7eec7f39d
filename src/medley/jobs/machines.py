"""The machines that a question is about: described in a file, measured by a coordinator, or this one.

    network: good
    fleet:
      desk: {device: desktop-ryzen-7950x}
      laptops: {count: 2, device: laptop-i7-11800h, network: cellular}
      tower: {device: {gflops: 900, memory_gib: 32, memory_gb_per_s: 60, watts: 250}, shard: false}

A file with `device` at its top describes one machine, which has the file's name. Keys are those of an experiment's
`fleet`; `tokens_per_s` is what a machine was seen to reach at this very job, and beats its device's arithmetic.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from medley.jobs.check import NAME
from medley.jobs.experiments.reading import Origin, read
from medley.jobs.text import Lines, parse, read_text
from medley.jobs.words import value_in_words
from medley.policies.costs import Size, train_flops
from medley.policies.devices import GIB, Device, described
from medley.protocol.conditions import PRESETS, Conditions
from medley.protocol.errors import UserError, did_you_mean
from medley.runtimes.simulated.setup import Machine
from medley.runtimes.simulated.watch import COORDINATOR

MAX_MACHINES = 10_000
_RANGES = (
    ("count", 0, MAX_MACHINES),
    ("slowness", 1e-3, 1e4),
    ("tokens_per_s", 0, 1e12),
    ("interruptions_per_h", 0, 3600),
)
CORE_GFLOPS = 15.0  # sustained, of a core nobody has measured
TRAINING_SHARE = 0.7  # of a large product's speed, in training: bench/whatif.py sees 0.7 to 0.8


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of a fleet: machines of one kind."""

    count: int = 1
    device: Any = ""
    network: str = ""
    overrides: dict[str, str] = field(default_factory=dict)
    worker: bool = True
    shard: bool = True
    slowness: float = 1.0
    spot: bool = False
    interruptions_per_h: float = 0.0
    tokens_per_s: float = 0.0


@dataclass(frozen=True, slots=True)
class FleetFile:
    network: str = "good"
    fleet: dict[str, Entry] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Group:
    """Machines that are alike, and the words for them: "laptops" or "desk"."""

    name: str
    machines: tuple[Machine, ...]


@dataclass(frozen=True, slots=True)
class Fleet:
    """`origin` ends the sentence "the fleet is ..."; `assumed` are sentences about what was not known."""

    groups: tuple[Group, ...]
    origin: str
    assumed: tuple[str, ...] = ()

    @property
    def machines(self) -> tuple[Machine, ...]:
        return tuple(machine for group in self.groups for machine in group.machines)

    def without(self, name: str) -> Fleet:
        """Less one machine, or a whole group. Raises UserError for a name that is neither."""
        kept = tuple(_less(group, name) for group in self.groups)
        if kept == self.groups:
            known = {m.name for m in self.machines} | {g.name for g in self.groups}
            raise UserError(f"--without: there is no machine '{name}'; {did_you_mean(name, known)}")
        return replace(self, groups=tuple(g for g in kept if g.machines))

    def joined(self, others: Iterable[Group]) -> Fleet:
        """With more machines; one whose name is taken gets a new one."""
        groups = list(self.groups)
        for group in others:
            taken = {m.name for g in groups for m in g.machines}
            machines = []
            for machine in group.machines:
                name, number = machine.name, 2
                while name in taken:
                    name, number = f"{machine.name}+{number}", number + 1
                taken.add(name)
                machines.append(replace(machine, name=name))
            groups.append(Group(group.name, tuple(machines)))
        return replace(self, groups=tuple(groups))


def _less(group: Group, name: str) -> Group:
    if group.name == name:
        return replace(group, machines=())
    return replace(group, machines=tuple(m for m in group.machines if m.name != name))


# -- a file -------------------------------------------------------------------------------------------------------


def read_fleet(path: Path, size: Callable[[Device], Size]) -> Fleet:
    """The fleet of a file; `size` is the job's model on a device. Raises UserError for whatever is wrong with it."""
    text = read_text(path)
    data, lines = parse(text, path.name, path.suffix.lower() == ".json")
    if not isinstance(data, dict):
        found = "is empty" if data is None else f"holds {value_in_words(data)}"
        raise UserError(
            f"{path.name} {found}, but a fleet is a group of keys such as 'fleet: {{desk: {{device: t4}}}}'"
        )
    if "device" in data or "tokens_per_s" in data:
        data, lines = {"fleet": {_as_name(path.stem): data}}, Lines()
    origin = Origin(path.name, lines)
    file: FleetFile = read(data, FleetFile, (), origin)
    _preset(file.network, ("network",), origin)
    groups = tuple(_group(name, entry, file.network, size, origin) for name, entry in file.fleet.items())
    _refuse_shared_names(groups, origin)
    if not any(group.machines for group in groups):
        raise UserError(f"{path.name} has no machine: write at least 'fleet: {{desk: {{device: laptop-i7-11800h}}}}'")
    if sum(len(group.machines) for group in groups) > MAX_MACHINES:
        raise UserError(f"{path.name} has more than {MAX_MACHINES} machines")
    return Fleet(groups, f"described in {path.name}")


def _group(name: str, entry: Entry, network: str, size: Callable[[Device], Size], origin: Origin) -> Group:
    where = ("fleet", name)
    if not NAME.fullmatch(name):
        rule = "names are 1 to 63 letters, digits, '.', '_' and '-', beginning with a letter or a digit"
        origin.refuse(where, f"fleet has the name '{name[:70]}', but {rule}")
    for key, low, high in _RANGES:
        value = getattr(entry, key)
        if not low <= value <= high:
            origin.refuse((*where, key), f"fleet.{name}.{key} is {value:g}, but must be from {low:g} to {high:g}")
    if entry.interruptions_per_h and not entry.spot:
        origin.refuse(where, f"fleet.{name}: only spot machines are taken away: set spot to true")
    try:
        device = described(entry.device or {"gflops": 100.0}, f"fleet.{name}.device")
    except UserError as error:
        origin.refuse((*where, "device"), str(error))
    if not entry.device and not entry.tokens_per_s:
        origin.refuse(where, f"fleet.{name} has neither device nor tokens_per_s: say how fast it is")
    if entry.tokens_per_s:
        device = of_rate(device, size(device), entry.tokens_per_s)
    conditions = _preset(entry.network or network, (*where, "network"), origin)
    overrides = {kind: _preset(p, (*where, "overrides", kind), origin) for kind, p in entry.overrides.items()}
    model = Machine(
        name, device, conditions, overrides, entry.worker, entry.shard, entry.slowness, entry.spot,
        entry.interruptions_per_h,
    )  # fmt: skip
    digits = len(str(entry.count))
    names = [name] if entry.count == 1 else [f"{name}-{n:0{digits}d}" for n in range(1, entry.count + 1)]
    return Group(name, tuple(replace(model, name=one) for one in names))


def _refuse_shared_names(groups: Iterable[Group], origin: Origin) -> None:
    seen = {COORDINATOR: "the coordinator"}
    for group in groups:
        for machine in group.machines:
            if machine.name in seen:
                found = f"fleet.{group.name} has a machine '{machine.name}', as {seen[machine.name]} is called"
                origin.refuse(("fleet", group.name), f"{found}: choose another name")
            seen[machine.name] = f"one of fleet.{group.name}"


def _as_name(stem: str) -> str:
    """What a machine is called whose file is called so."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-._")[:63] or "machine"


def _preset(name: str, path: tuple[str, ...], origin: Origin) -> Conditions:
    if name not in PRESETS:
        origin.refuse(path, f"{'.'.join(path)}: there is no preset '{name}'; {did_you_mean(name, PRESETS)}")
    return PRESETS[name]


def of_rate(device: Device, size: Size, tokens_per_s: float) -> Device:
    """A device that trains this model at a measured speed, whatever its data sheet says."""
    flops = train_flops(size, tokens_per_s)
    return replace(device, flops_per_s=flops, source=f"measured: {tokens_per_s:.0f} tokens/s")


# -- a coordinator ------------------------------------------------------------------------------------------------


def measured(nodes: Iterable[Mapping[str, Any]], conditions: Conditions, seen: Callable[[Device], Size]) -> Fleet:
    """The machines of a running coordinator, as its status tells of them; `seen` is the model that was trained when
    their tokens a second were measured. Raises UserError when none is connected.
    """
    groups, unmeasured = [], 0
    for node in nodes:
        if not node["connected"]:
            continue
        device = replace(_unknown(node["cores"], node["memory_bytes"]), kind=str(node["platform"]))
        rate = float(node["tokens_per_s"])
        worker = "worker" in node["roles"]
        unmeasured += worker and not rate
        if rate:
            device = of_rate(device, seen(device), rate)
        machine = Machine(node["node"], device, conditions, {}, worker, "shard" in node["roles"])
        groups.append(Group(machine.name, (machine,)))
    if not groups:
        raise UserError("no machine is connected to the coordinator: describe a fleet with --nodes FILE")
    assumed = ["power and memory bandwidth of the machines are guessed"]
    if unmeasured:
        assumed.insert(0, f"{unmeasured} machines have not trained yet: {CORE_GFLOPS:g} GFLOP/s a core")
    return Fleet(tuple(groups), "what the coordinator here sees", tuple(assumed))


def _unknown(cores: int, memory_bytes: int) -> Device:
    guessed = {"gflops": CORE_GFLOPS * max(1, cores), "watts": 10.0 + 8 * cores, "idle_watts": 5.0 + cores}
    memory = {"memory_gib": max(memory_bytes, 1) / GIB}
    return described({**guessed, **memory})


# -- this machine -------------------------------------------------------------------------------------------------


def this_machine(workers: int, keepers: int, gflops: float, bf16: bool, cores: int, memory_bytes: int) -> Fleet:
    """The pool that `medley train` starts here: processes that share the cores, with nothing between them."""
    whole = _unknown(cores, memory_bytes)
    share = replace(
        whole,
        kind="this machine",
        flops_per_s=gflops * 1e9 * TRAINING_SHARE / workers,
        memory_bytes_per_s=whole.memory_bytes_per_s / workers,
        watts=whole.watts / workers,
        idle_watts=whole.idle_watts / workers,
        precision="bf16" if bf16 else "fp32",
        source="measured here",
    )
    keeper = replace(share, watts=0.0, idle_watts=0.0)
    trains = tuple(Machine(f"worker-{n}", share, shard=keepers == 0) for n in range(1, workers + 1))
    keeps = tuple(Machine(f"shard-{n}", keeper, worker=False) for n in range(1, keepers + 1))
    groups = (Group("workers", trains), *([Group("shard nodes", keeps)] if keeps else []))
    return Fleet(groups, "this machine, measured", ("its power is guessed",))
