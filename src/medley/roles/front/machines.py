"""The machines that may serve: what each has loaded, what it was measured at, and whether it is believed.

A machine is known by name; a new address means a new process, which holds nothing. One that was suspected is not used
again for a while, longer each time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from medley.policies.pipeline.describe import Machine, ModelShape, Times
from medley.policies.pipeline.repair import Held
from medley.protocol.ids import NS_PER_S, NodeId
from medley.protocol.messages import Address
from medley.protocol.stages.words import Measured, StageStatus

DISTRUST_NS = 5 * NS_PER_S  # after the first suspicion; doubled with each
DISTRUST_MOST_NS = 600 * NS_PER_S
FORGIVEN_NS = 60 * NS_PER_S  # so long after the end of its distrust it begins at the first suspicion again
SLOW_ONCE_NS = 60 * NS_PER_S  # after a slow machine has lost its layers, until it is measured again
SLOW = 1.25
KEPT_FREE = 0.2  # of a machine's memory, for its owner


@dataclass(slots=True, eq=False)
class MachineView:
    """`limits` grow with what is loaded: the KV of these layers for all the tokens that were promised."""

    node: NodeId
    address: Address
    since_ns: int
    up: bool = True
    loaded: set[int] = field(default_factory=set)
    measured: Measured | None = None
    status: StageStatus | None = None
    slowness: float = 1.0  # than when it was measured, while it serves
    told_slowness: float = 1.0
    paced_ns: int = 0  # when that was seen last
    suspicions: int = 0
    distrusted_ns: int = 0
    draining: bool = False

    def usable(self, now_ns: int) -> bool:
        return self.there and now_ns >= self.distrusted_ns

    @property
    def there(self) -> bool:
        """It answered last, and may work. One that was suspected is gone until it answers again."""
        return self.up and not self.draining

    def was_slow(self, now_ns: int) -> bool:
        """When it served last, a while ago: that may be over."""
        return self.slowness > SLOW and now_ns - self.paced_ns > SLOW_ONCE_NS

    def was_measured(self, word: Measured) -> None:
        self.measured, self.slowness, self.told_slowness = word, 1.0, 1.0

    def described(self) -> Machine:
        assert self.measured is not None
        layer, head = (Times(*seen) for seen in (self.measured.layer_s, self.measured.head_s))
        return Machine(self.node, int(self.measured.memory_nbytes * (1 - KEPT_FREE)), layer, head)


def holding(views: Iterable[MachineView], taken: Iterable[NodeId], now_ns: int) -> list[Held]:
    """For a repair: who has what; `taken` are at work in other pipelines."""
    busy = set(taken)
    return [Held(m.node, frozenset(m.loaded), m.node in busy, not m.usable(now_ns)) for m in views]


class Machines:
    def __init__(self) -> None:
        self.known: dict[NodeId, MachineView] = {}

    def up(self, node: NodeId, address: Address, now_ns: int) -> bool:
        """Whether that is news: a machine, or a new process of one."""
        view = self.known.get(node)
        if view is not None and view.up and view.address == address:
            return False
        fresh = MachineView(node, address, now_ns)
        if view is not None:
            fresh.suspicions, fresh.distrusted_ns, fresh.measured = view.suspicions, view.distrusted_ns, view.measured
        self.known[node] = fresh
        return True

    def down(self, node: NodeId) -> bool:
        view = self.known.get(node)
        if view is None or not view.up:
            return False
        view.up, view.status = False, None
        view.loaded.clear()
        return True

    def suspect(self, node: NodeId, now_ns: int) -> None:
        view = self.known[node]
        if now_ns - view.distrusted_ns > FORGIVEN_NS:
            view.suspicions = 0
        view.suspicions += 1
        view.distrusted_ns = now_ns + min(DISTRUST_MOST_NS, DISTRUST_NS * 2 ** (view.suspicions - 1))

    def usable(self, now_ns: int) -> list[MachineView]:
        return [self.known[node] for node in sorted(self.known) if self.known[node].usable(now_ns)]

    def there(self) -> list[MachineView]:
        """Trusted or not: where those that are trusted cannot do it, a doubtful machine is better than none."""
        return [self.known[node] for node in sorted(self.known) if self.known[node].there]

    def room(self, model: ModelShape, kv_tokens: int, process_nbytes: int) -> Mapping[NodeId, int]:
        """Bytes that each has free beside itself, what it holds, and the KV of that."""
        out = {}
        for view in self.there():
            if view.measured is None:
                continue
            ends = model.ends_nbytes(0 in view.loaded, model.layers - 1 in view.loaded)
            used = process_nbytes + ends + len(view.loaded) * (model.layer_nbytes + kv_tokens * model.kv_nbytes)
            out[view.node] = view.measured.memory_nbytes - used
        return out
