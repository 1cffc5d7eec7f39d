"""The learning rate as a function of progress.

Progress is the committed fraction of the planned samples (or of the time limit, whichever is further), so the
schedule does not care how many machines share the work or how often one of them died.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import cos, pi

from medley.protocol.spec import Optimizer


@dataclass(frozen=True, slots=True)
class Plateau:
    """Where a plateau schedule stands: the factor so far, the best loss, evaluations since."""

    factor: float = 1.0
    best: float | None = None
    waited: int = 0


def rate(optimizer: Optimizer, progress: float, plateau: Plateau) -> float:
    """Learning rate at `progress` in [0, 1]."""
    progress = min(max(progress, 0.0), 1.0)
    warm = optimizer.warmup_fraction
    if warm > 0 and progress < warm:
        return optimizer.lr * max(progress / warm, 0.01)
    return optimizer.lr * _shape(optimizer, (progress - warm) / max(1.0 - warm, 1e-9), plateau)


def measured(optimizer: Optimizer, plateau: Plateau, loss: float) -> Plateau:
    """The plateau after one more held-out loss: halve the rate after `plateau_patience` without improvement."""
    if plateau.best is None or loss < plateau.best:
        return Plateau(plateau.factor, loss, 0)
    if plateau.waited + 1 < optimizer.plateau_patience:
        return Plateau(plateau.factor, plateau.best, plateau.waited + 1)
    return Plateau(max(plateau.factor / 2, optimizer.min_lr_fraction), plateau.best, 0)


def _shape(optimizer: Optimizer, t: float, plateau: Plateau) -> float:
    low = optimizer.min_lr_fraction
    match optimizer.schedule:
        case "constant":
            return 1.0
        case "linear":
            return 1.0 - (1.0 - low) * t
        case "cosine":
            return low + (1.0 - low) * (1.0 + cos(pi * t)) / 2
        case "plateau":
            return plateau.factor
