"""The integer proof: the gradient of position i is one in coordinate i, so parameters are a count of what was used.

Every parameter starts at 2 and loses one for each committed use of its sample. What the log says is committed at a
version is therefore what every shard, every pull and every checkpoint must hold at that version.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from medley.protocol.codec import parse, text
from medley.protocol.effects import Effect
from medley.protocol.engine import SealCheckpoint
from medley.protocol.events import Event
from medley.protocol.ids import Generation, JobId, NodeId, Version
from medley.protocol.messages import Span
from medley.protocol.plan import Plan
from medley.protocol.records import Committed, Leased, Placed, Prepared, Record
from medley.protocol.spec import JobSpec
from medley.roles import ledger
from medley.roles.coordinator import Coordinator
from medley.roles.run import Run
from medley.runtimes.simulated.arithmetic import Blocks
from medley.runtimes.simulated.arithmetic.proof import START, Vector, join
from medley.runtimes.simulated.watch import COORDINATOR, Watcher

if TYPE_CHECKING:
    from medley.runtimes.simulated.world import World


class Proof:
    """Follows one job's log as it is written and knows the parameters of every version of every generation."""

    def __init__(self) -> None:
        self.generation = 0
        self.version = 0
        self.expected: dict[tuple[int, int], Vector] = {}
        self.leases: dict[int, Span] = {}
        self.rounds: dict[tuple[int, int], tuple[Span, ...]] = {}  # what made each version, in order of merging
        self.samples = 0
        self.commits = 0
        self.rollbacks = 0

    def follow(self, record: Record) -> None:
        match record:
            case Prepared():
                self.samples = parse(record.plan, Plan).samples
                self.expected[0, 0] = np.full(self.samples, START)
            case Placed():
                self._placed(record)
            case Leased():
                assert record.lease not in self.leases, f"lease {record.lease} was given twice"
                self.leases[record.lease] = record.span
            case Committed():
                self._committed(record)
            case _:
                pass

    def at(self, generation: int, version: int) -> Vector:
        """Parameters as the log has them; KeyError for a version nobody committed."""
        return self.expected[generation, version]

    def _placed(self, record: Placed) -> None:
        assert record.generation == self.generation + 1, "generations follow each other"
        self.rollbacks += self.generation > 0
        old = {v: p for (g, v), p in self.expected.items() if g == self.generation and v <= record.version}
        assert record.version in old, f"checkpoint {record.version} was never a version"
        for version, params in old.items():
            self.expected[record.generation, version] = params
            if version > 0:
                self.rounds[record.generation, version] = self.rounds[self.generation, version]
        self.generation, self.version = record.generation, record.version

    def _committed(self, record: Committed) -> None:
        assert record.number == self.version + 1, "versions follow each other"
        params = self.expected[self.generation, self.version].copy()
        for member in record.members:
            for lease in member.leases:
                span = self.leases[lease]
                params[span.start : span.stop] -= 1
        spans = [self.leases[n] for m in record.members for n in m.leases]
        self.rounds[self.generation, record.number] = tuple(spans)
        self.version = record.number
        self.commits += 1
        self.expected[self.generation, record.number] = params

    def history(self) -> list[tuple[Span, ...]]:
        """What made the parameters that survive, commit by commit."""
        return [self.rounds[self.generation, v] for v in range(1, self.version + 1)]


class ProofWatcher(Watcher):
    """Holds every value that an engine shows against the log, and the live state against its fold."""

    def __init__(self) -> None:
        self.proofs: dict[JobId, Proof] = {}
        self._events = 0

    def of(self, job: JobId) -> Proof:
        found = self.proofs.get(job)
        if found is None:
            found = self.proofs[job] = Proof()
        return found

    def persisted(self, world: World, stream: str, record: Record) -> None:
        self.of(stream.removeprefix("job/")).follow(record)

    def pulled(self, world: World, job: JobId, generation: Generation, version: Version, blocks: Blocks) -> None:
        """What a worker pulled is one version, whole."""
        wanted, params = self.of(job).at(generation, version), join(blocks)
        assert np.array_equal(params, wanted), f"a pull of {version} in {generation}: {params} instead of {wanted}"

    def applied(
        self, world: World, job: JobId, shard: int, generation: Generation, version: Version, blocks: Blocks
    ) -> None:
        """A shard's parameters are those that the log has at this version."""
        wanted, layout = self.of(job).at(generation, version), world.job_named(job).layout
        for index, part in blocks.items():
            block = layout.blocks[index]
            there = wanted[block.offset : block.offset + block.numel]
            assert np.array_equal(part, there), f"block {index} at {version}: {part} instead of {there}"

    def sealed(self, world: World, command: SealCheckpoint, blocks: Blocks) -> None:
        params, wanted = join(blocks), self.of(command.job).at(command.generation, command.version)
        assert np.array_equal(params, wanted), f"checkpoint {command.version}: {params} instead of {wanted}"
        used = np.zeros(len(params))
        for span in command.committed:
            used[span.start : span.stop] += 1
        assert np.array_equal(START - used, params), "the ledger of a checkpoint is that of its parameters"

    def handled(
        self, world: World, who: NodeId, key: tuple[JobId, int] | None, event: Event, effects: Sequence[Effect]
    ) -> None:
        if who != COORDINATOR or world.coordinator is None:
            return
        self._events += 1
        for job, run in world.coordinator.runs.items():
            if run.state.samples is not None:
                self._check(job, run)
        if self._events % 128 == 0:
            check_fold(world)

    def _check(self, job: JobId, run: Run) -> None:
        samples = run.state.ledger
        assert ledger.missing(samples) == 0, f"{ledger.missing(samples)} samples are nowhere"
        assert samples.doubled == 0, "samples were committed twice"
        assert run.state.version == self.of(job).version, "the log has every version"
        assert len(run.ctx.pins) <= 3, f"pins are bounded: {run.ctx.pins}"
        if self._events % 16 == 0:
            spans = [h.span for h in samples.leases.values()] + samples.opened + samples.committed
            assert ledger.count(ledger.merge(spans)) == ledger.count(spans), "a sample in two places"


def check_fold(world: World) -> None:
    """The live state is the fold of the log."""
    if world.coordinator is None:
        return
    replayed = Coordinator(0)
    replayed.restore(world.disk.read())
    for job, run in world.coordinator.runs.items():
        live, again = text(run.state), text(replayed.runs[job].state)
        assert live == again, f"the fold of the log differs:\n{live}\n{again}"


def check_export(world: World, proof: Proof, job: JobId, spec: JobSpec, samples: int) -> None:
    """Every sample was used exactly as often as the job says."""
    exports = world.kept(job).exports
    assert exports, "nothing was exported"
    total = max(1, round(samples * spec.train.epochs))
    uses = np.array([(total - i + samples - 1) // samples for i in range(samples)])
    version, blocks = exports[-1]
    params = join(blocks)
    assert np.array_equal(params, START - uses), f"version {version} has {params}"
    train = spec.train
    if train.deterministic:
        wanted = in_order(samples, train.epochs, train.batch_samples, train.sync.slots)
        assert proof.history() == wanted, "a deterministic run does not depend on who is there"


def in_order(samples: int, epochs: float, batch: int, slots: int) -> list[tuple[Span, ...]]:
    """The history of a deterministic run: every round the next `slots` spans of the order, whoever computes them."""
    total = max(1, round(samples * epochs))
    spans = []
    position = 0
    while position < total:
        epoch, start = divmod(position, samples)
        stop = min(start + batch, samples, total - epoch * samples)
        spans.append(Span(epoch, start, stop))
        position += stop - start
    return [tuple(spans[i : i + slots]) for i in range(0, len(spans), slots)]
