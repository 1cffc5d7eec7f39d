"""The order of samples within an epoch: a permutation that every machine computes alike from (seed, epoch).

Leases name positions in it, so nothing but two numbers travels. Philox is specified to the bit, and the
shuffle below uses only its raw 64-bit words, so the order depends on no library's shuffling algorithm.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray


@lru_cache(maxsize=4)
def epoch_order(n: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Sample numbers [n] in the order of this epoch; read-only."""
    words = np.random.Philox(key=(seed % 2**64) | ((epoch % 2**64) << 64)).random_raw(n)
    order = np.argsort(words, kind="stable").astype(np.int64)
    order.flags.writeable = False
    return order


def samples_at(n: int, seed: int, epoch: int, start: int, stop: int) -> NDArray[np.int64]:
    """Sample numbers at positions [start, stop) of an epoch."""
    return epoch_order(n, seed, epoch)[start:stop]
