"""What a serving world consists of: a model's shape, machines as they were measured, how they are linked, who asks."""

from __future__ import annotations

from dataclasses import dataclass, field

from medley.policies.pipeline.describe import Link, Links, Machine, ModelShape, Times, Wanted
from medley.protocol.conditions import Conditions
from medley.protocol.ids import NodeId
from medley.protocol.stages.events import Asked
from medley.protocol.stages.words import WireType

FRONT = "front"  # where the front lives: a place in the network like any machine


@dataclass(frozen=True, slots=True)
class Host:
    """A machine. `measured.memory_nbytes` is what it may use; `load_bytes_per_s`: weights, from wherever they come."""

    measured: Machine
    conditions: Conditions = field(default_factory=Conditions)
    load_bytes_per_s: float = 1e9
    joins_ns: int = 0

    @property
    def name(self) -> NodeId:
        return self.measured.name


@dataclass(frozen=True, slots=True)
class Client:
    """Somebody who asks at a time, and perhaps leaves before the answer is whole."""

    at_ns: int
    asked: Asked
    leaves_ns: int = 0  # after asking; 0: stays


@dataclass(frozen=True, slots=True)
class ServingSetup:
    """`positions`: the context of the model. `bits`: copies go out bit by bit, behind the passes, not at once."""

    shape: ModelShape
    hosts: tuple[Host, ...]
    clients: tuple[Client, ...]
    wanted: Wanted
    pins: str = ""
    survive: int = 0
    expected: int = 1
    reach: bool = False
    narrow: bool = False
    wire: WireType = "bf16"
    positions: int = 1024
    front: Conditions = field(default_factory=Conditions)
    front_at: NodeId = FRONT  # or a machine: the front lives there
    links: Links = field(default_factory=lambda: Links(Link(0.0002, 1e12)))
    bits: bool = False
    guesses: bool = False  # a draft model, sometimes wrong, sometimes late
    boot_ns: int = 1_000_000_000


def even(name: str, layer_s: float, memory_nbytes: int = 1 << 40) -> Machine:
    """A machine whose times grow as they do on a CPU: eight streams cost twice one, a chunk of a prompt eight times."""
    layer = Times(layer_s, 2 * layer_s, 8 * layer_s)
    return Machine(name, memory_nbytes, layer, Times(layer_s / 2, layer_s, layer_s))
