"""Whether an exception means that memory ran out, and how large a micro-batch may be to begin with."""

from __future__ import annotations

import torch

# What torch and the C library say when an allocation fails without a type of its own.
PHRASES = (
    "not enough memory",
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "bad_alloc",
)
# More tokens at once than this fill every core already; fewer keep activations in cache.
TOKENS_AT_ONCE = {"cpu": 2048, "cuda": 32_768}


def is_out_of_memory(error: BaseException) -> bool:
    """True where a smaller micro-batch may help."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(phrase in str(error).lower() for phrase in PHRASES)
