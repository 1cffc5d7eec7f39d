"""What a world consists of. Everything that a run of the simulator depends on is in a `Setup` and a seed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from medley.policies.devices import Device
from medley.protocol.conditions import Conditions
from medley.protocol.ids import JobId, NodeId
from medley.protocol.spec import JobSpec

ArithmeticKind = Literal["proof", "sizes", "real"]


@dataclass(frozen=True, slots=True)
class Workload:
    """What a job's model weighs; `real` arithmetic builds `task` instead and measures the rest itself."""

    samples: int
    heldout: int = 1
    parameters: int = 0  # trainable elements
    frozen_parameters: int = 0  # of the base model below adapters
    tokens_per_sample: int = 256
    task: str = ""  # real: digits-mlp, lstm, llama


@dataclass(frozen=True, slots=True)
class Machine:
    """One node of the fleet."""

    name: NodeId
    device: Device
    conditions: Conditions = field(default_factory=Conditions)
    overrides: dict[str, Conditions] = field(default_factory=dict)  # by class of traffic
    worker: bool = True
    shard: bool = True
    slowness: float = 1.0  # times the device's own step
    spot: bool = False
    interruptions_per_h: float = 0.0
    joins_ns: int = 0
    leaves_ns: int = 0  # 0: never


@dataclass(frozen=True, slots=True)
class Arrival:
    """One job of the stream."""

    job: JobId
    spec: JobSpec
    workload: Workload
    at_ns: int = 0
    deadline_ns: int = 0  # 0: none


@dataclass(frozen=True, slots=True)
class Setup:
    machines: tuple[Machine, ...]
    arrivals: tuple[Arrival, ...]
    scheduler: str = "fifo"
    quotas: dict[str, int] = field(default_factory=dict)  # machines that the jobs of a queue may have at once
    arithmetic: ArithmeticKind = "proof"
    heartbeat_ms: int = 1000
