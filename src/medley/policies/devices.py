"""Described devices: what a machine can do, for planning and simulation. Figures are what training reaches, not data
sheets: `flops_per_s` is sustained in a Transformer's matrix products at the precision that the device trains in.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Device:
    """One kind of machine. `source` says where the figures come from."""

    kind: str
    flops_per_s: float  # sustained, in training
    memory_bytes: int
    memory_bytes_per_s: float
    watts: float  # under load
    idle_watts: float
    usd_per_h: float  # typical price where it can be rented; 0 for what a group owns
    source: str
