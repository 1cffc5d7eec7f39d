"""What a job became once it was prepared: everything a machine needs to take part, as one JSON text.

The coordinator makes it once (from the job specification, the prepared data and the model's layout), persists it,
and sends it unchanged to every worker and shard.
"""

from __future__ import annotations

from dataclasses import dataclass

from medley.protocol.layout import Layout, TensorSpec, make_layout
from medley.protocol.messages import Artifact
from medley.protocol.spec import JobSpec


@dataclass(frozen=True, slots=True)
class Plan:
    """`samples` of one epoch; `artifacts` (data, tokenizer) lie at the vault, by digest."""

    spec: JobSpec
    samples: int
    heldout: int
    tensors: tuple[TensorSpec, ...]
    artifacts: tuple[Artifact, ...]

    def layout(self) -> Layout:
        return make_layout(self.tensors, self.spec.placement.block_elements)
