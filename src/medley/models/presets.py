"""Networks by name: a pure table, no torch. Shapes only; `load` makes the network.

Parameter counts (tied embeddings counted once) are checked by a test.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from medley.protocol.errors import UserError, did_you_mean


@dataclass(frozen=True, slots=True)
class Preset:
    """One decoder.

    `vocab_size` 0 takes `Model.vocab_size`; `kv_heads` counts key-value heads (grouped attention).
    """

    family: Literal["llama", "opt"]
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    context_tokens: int
    vocab_size: int = 0
    tied: bool = True


PRESETS: dict[str, Preset] = {
    # Small enough for a link that carries as much as a telephone line.
    "llama-nano": Preset("llama", 128, 2, 4, 4, 352, 1024),
    # Two wide layers learn a small corpus by heart in a fraction of the steps that five narrow ones need.
    "llama-tiny": Preset("llama", 384, 2, 6, 6, 1024, 1024),
    "llama-10m": Preset("llama", 320, 6, 5, 5, 1088, 1024),
    "llama-60m": Preset("llama", 512, 16, 8, 8, 1536, 2048),
    "llama-160m": Preset("llama", 768, 20, 12, 12, 2048, 2048),
    "tinyllama-1.1b": Preset("llama", 2048, 22, 32, 4, 5632, 2048, 32_000, tied=False),
    "opt-tiny": Preset("opt", 384, 2, 6, 6, 1536, 1024),
    "opt-125m": Preset("opt", 768, 12, 12, 12, 3072, 2048, 50_272),
    "opt-1.3b": Preset("opt", 2048, 24, 32, 32, 8192, 2048, 50_272),
}


def is_preset(base: str) -> bool:
    return base in PRESETS


def preset(name: str) -> Preset:
    """Raises `UserError` with the nearest name."""
    if name not in PRESETS:
        raise UserError(f"model.base '{name}' is no preset; {did_you_mean(name, PRESETS)}")
    return PRESETS[name]


def parameters(shape: Preset, vocab_size: int) -> int:
    """How many parameters the network will have, without building it."""
    vocab = shape.vocab_size or vocab_size
    per_layer = _llama_layer(shape) if shape.family == "llama" else _opt_layer(shape)
    embeddings = vocab * shape.hidden * (1 if shape.tied else 2)
    extra = shape.hidden if shape.family == "llama" else 2 * shape.hidden + (shape.context_tokens + 2) * shape.hidden
    return embeddings + shape.layers * per_layer + extra


def _llama_layer(shape: Preset) -> int:
    head = shape.hidden // shape.heads
    attention = 2 * shape.hidden**2 + 2 * shape.hidden * head * shape.kv_heads
    return attention + 3 * shape.hidden * shape.intermediate + 2 * shape.hidden


def _opt_layer(shape: Preset) -> int:
    attention = 4 * (shape.hidden**2 + shape.hidden)
    feed = 2 * shape.hidden * shape.intermediate + shape.intermediate + shape.hidden
    return attention + feed + 4 * shape.hidden
