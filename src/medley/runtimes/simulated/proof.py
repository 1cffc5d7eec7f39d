"""The integer proof: the gradient of position i is one in coordinate i, so parameters are a count of what was used.

Every parameter starts at 2 and loses one for each committed use of its sample. What the log says is committed at a
version is therefore what every shard, every pull and every checkpoint must hold at that version.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from medley.protocol.codec import parse
from medley.protocol.messages import Span
from medley.protocol.plan import Plan
from medley.protocol.records import Committed, Leased, Placed, Prepared, Record, Returned

Vector = NDArray[np.float64]
START = 2.0


class Proof:
    """Follows the log as it is written and knows the parameters of every version of every generation."""

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
            case Returned():
                pass
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
