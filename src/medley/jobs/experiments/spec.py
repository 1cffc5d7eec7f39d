"""What an experiment is: one tree of options, each with its unit and its default.

An experiment file (YAML or JSON) has exactly these keys; `load` reads it, `check` says what cannot work, `fleet` draws
machines and jobs from it. Whatever is drawn comes from the experiment's seed and the repeat, never from the point of
the sweep: points are compared on the same fleets and the same arrivals.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from medley.protocol.conditions import Conditions
from medley.protocol.spec import Checkpoint, Placement, Schedule, Train

MAX_MACHINES = 10_000
MAX_ARRIVALS = 100_000
MAX_RUNS = 10_000  # points times repeats
Kind = Literal["fixed", "choice", "spread", "uniform", "log_uniform", "normal", "exponential"]


@dataclass(frozen=True, slots=True)
class Numbers:
    """A number for each machine of a group: written out, or drawn.

    `2`, `{choice: [1, 2]}`, `{choice: {1: 3, 2: 1}}` with weights, `{uniform: [1, 4]}`, `{log_uniform: [1, 4]}`,
    `{normal: [10, 2]}` (mean, deviation; never below 0), `{exponential: 600}` (mean), and `{spread: [1, 4]}`, which
    draws nothing: the first machine has 1, the last 4, the others lie between at equal ratios.
    """

    kind: Kind = "fixed"
    values: tuple[float, ...] = (0.0,)
    weights: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Words:
    """A name for each machine of a group: `t4`, `{choice: [t4, l4]}`, `{choice: {t4: 3, l4: 1}}`."""

    kind: Kind = "fixed"
    values: tuple[str, ...] = ("",)
    weights: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Group:
    """Machines of one kind; `count: 1` is one machine, which has the group's own name."""

    count: int = 1
    device: Words = field(
        default_factory=lambda: Words(values=("laptop-i7-11800h",))
    )  # of the library, or of `devices`
    slowness: Numbers = field(default_factory=lambda: Numbers(values=(1.0,)))  # times the device's own step
    network: Words = field(default_factory=Words)  # preset; empty: the experiment's `network.profile`
    overrides: dict[str, str] = field(default_factory=dict)  # class of traffic: preset; beside the experiment's
    worker: bool = True  # trains
    shard: bool = True  # may hold parameters
    spot: bool = False  # rented, may be taken away
    interruptions_per_h: float = 0.0  # of each spot machine
    joins_s: Numbers = field(default_factory=Numbers)
    leaves_s: Numbers = field(default_factory=Numbers)  # 0: never


@dataclass(frozen=True, slots=True)
class Links:
    """What lies between the machines."""

    profile: str = "good"  # preset of machines that name none
    overrides: dict[str, str] = field(default_factory=dict)  # class of traffic: preset
    presets: dict[str, Conditions] = field(default_factory=dict)  # own presets, beside the built-in ones


@dataclass(frozen=True, slots=True)
class SimulatedModel:
    """What is trained: a real tiny task, or the size of a model that is not computed.

    A task may be charged as a larger model: its curves are then its own, the time that a step takes the larger one's.
    """

    task: Literal["", "digits-mlp", "lstm", "llama"] = ""  # engine real
    parameters: int = 0  # trainable elements that time is charged for; 0: 1,000,000, or as many as the task has
    frozen_parameters: int = 0  # of the base model below adapters
    tokens_per_sample: int = 0  # the same for tokens; 0: 256, or as many as the task has
    samples: int = 2048  # training examples of one epoch; a task brings its own
    heldout: int = 64


@dataclass(frozen=True, slots=True)
class Job:
    """A kind of job."""

    model: SimulatedModel = field(default_factory=SimulatedModel)
    train: Train = field(default_factory=Train)
    placement: Placement = field(default_factory=Placement)
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    schedule: Schedule = field(default_factory=Schedule)
    at_s: float = 0.0  # when it arrives; without `arrivals`
    deadline_s: float = 0.0  # after its arrival; 0: none
    weight: float = 1.0  # its share of `arrivals`


@dataclass(frozen=True, slots=True)
class Arrivals:
    """A stream of jobs, their kinds drawn by weight. Without it, each job of `jobs` arrives once, at its `at_s`."""

    count: int = 0  # 0: no stream
    per_h: float = 0.0  # Poisson; 0: all at the start


@dataclass(frozen=True, slots=True)
class Offered:
    """A kind of machine that the autoscaler may rent. It trains, and holds no parameters."""

    device: str = "a10g"
    network: str = ""  # preset; empty: the experiment's
    available: int = 8
    spot: bool = False  # at SPOT_SHARE of the price, and may be taken away
    interruptions_per_h: float = 0.0  # of each spot machine
    start_s: float = 60.0  # from the wish until it joins


@dataclass(frozen=True, slots=True)
class Autoscaling:
    """Machines beside the fleet, as `policies.autoscaling` wants them; none without `offers`."""

    offers: dict[str, Offered] = field(default_factory=dict)
    max_nodes: int = 0  # 0: no autoscaling
    min_nodes: int = 0  # kept although nothing waits
    usd_per_h: float = 0.0  # at most; 0: no limit
    every_s: float = 30.0  # between two decisions
    drain_s: float = 3600.0  # the rate is at least what empties the rest of the queue in this time
    headroom: float = 0.15  # more than a deadline needs
    settle_s: float = 300.0  # less must have been enough for so long before machines go
    cooldown_s: float = 60.0  # between two changes that no deadline asks for


@dataclass(frozen=True, slots=True)
class Experiment:
    name: str = "experiment"
    learn: str = ""  # what it is to show; printed at the head of the report
    seed: int = 1
    repeats: int = 1  # runs of each point, with other draws
    until_s: float = 86_400.0  # virtual; a run that is not done by then is unfinished
    engine: Literal["modelled", "real", "proof"] = "modelled"
    heartbeat_ms: int = 1000
    scheduler: str = "fifo"
    quotas: dict[str, int] = field(default_factory=dict)  # by schedule.queue: machines at once
    target_loss: float = 0.0  # for the time to it: of the held-out loss; 0: none
    faults: dict[str, float] = field(default_factory=dict)  # by name, with its rate (see docs/simulate.md)
    fleet: dict[str, Group] = field(default_factory=dict)
    devices: dict[str, Any] = field(default_factory=dict)  # own devices: `{kind: rtx-4090, gflops: 40000}`
    network: Links = field(default_factory=Links)
    jobs: dict[str, Job] = field(default_factory=dict)
    arrivals: Arrivals = field(default_factory=Arrivals)
    autoscaling: Autoscaling = field(default_factory=Autoscaling)
    sweep: dict[str, Any] = field(default_factory=dict)
    success: tuple[str, ...] = ()  # criteria, such as "completion_s <= 3600" or "bytes < 2 x baseline"
    baseline: dict[str, str] = field(
        default_factory=dict
    )  # sweep key: value, of the point that others are held against
