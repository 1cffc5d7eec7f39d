"""How many threads a stage computes with: the process's own business, said once before it computes."""

from __future__ import annotations

import torch


def use_threads(threads: int) -> None:
    """0: as many as torch chooses."""
    if threads:
        torch.set_num_threads(threads)
