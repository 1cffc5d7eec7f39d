"""A network from a preset, a Hugging Face directory, or a hub name, ready to train.

Promises: safetensors only, no remote code. `check_memory` tells, before anything is allocated, whether training fits.
Leaves to others: which number format (`dtype`), adapters (`lora`), where parameters live.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.utils import logging

from medley.models import presets
from medley.models.attention import ATTENTION
from medley.models.dtype import cast_parameters
from medley.models.lora import add_lora
from medley.models.memory import available_nbytes, readable
from medley.protocol.errors import UserError, first_line
from medley.protocol.spec import Model

# Of fp32 full training on one machine: parameters, gradients, and two vectors on their way (base and update).
VECTORS_IN_TRAINING = 4


def load_model(model: Model, seed: int, tokenizer: Any, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The trainable network, in `dtype`, in training mode; with LoRA only the adapters require gradients.

    Presets are initialised at random from `seed`. Raises `UserError` for an unknown base, weights that are not
    safetensors, or a context longer than the model's positions.
    """
    logging.disable_progress_bar()
    config = config_of(model, tokenizer)
    check_context(model, config)
    torch.manual_seed(seed)
    network = _random(config, dtype) if presets.is_preset(model.base) else _stored(model.base, dtype)
    network.config.use_cache = False
    if model.lora.rank:
        network = add_lora(network, model.lora)
    if model.gradient_checkpointing:
        network.enable_input_require_grads() if model.lora.rank else None
        network.gradient_checkpointing_enable({"use_reentrant": False})
    return network.train()


def config_of(model: Model, tokenizer: Any) -> Any:
    """The transformers configuration. Raises `UserError` when `base` names nothing."""
    if presets.is_preset(model.base):
        return _preset_config(presets.preset(model.base), tokenizer)
    from transformers import AutoConfig

    if not Path(model.base).is_dir() and "/" not in model.base:
        presets.preset(model.base)
    try:
        return AutoConfig.from_pretrained(model.base, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UserError(f"model.base '{model.base}' could not be loaded ({first_line(error)})") from error


def _preset_config(shape: presets.Preset, tokenizer: Any) -> Any:
    from transformers import LlamaConfig, OPTConfig

    common = {
        "vocab_size": shape.vocab_size or len(tokenizer),
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "max_position_embeddings": shape.context_tokens,
        "tie_word_embeddings": shape.tied,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    if shape.family == "llama":
        return LlamaConfig(**common, num_key_value_heads=shape.kv_heads, intermediate_size=shape.intermediate)
    return OPTConfig(
        **common,
        ffn_dim=shape.intermediate,
        word_embed_proj_dim=shape.hidden,
        dropout=0.0,
        attention_dropout=0.0,
    )


def _random(config: Any, dtype: torch.dtype) -> Any:
    from transformers import AutoModelForCausalLM

    # Drawn in fp32 whatever the compute format, so that every machine starts from the same numbers.
    network = AutoModelForCausalLM.from_config(config, attn_implementation=ATTENTION, dtype=torch.float32)
    return cast_parameters(network, dtype)


def _stored(base: str, dtype: torch.dtype) -> Any:
    from transformers import AutoModelForCausalLM

    try:
        return AutoModelForCausalLM.from_pretrained(
            base, dtype=dtype, use_safetensors=True, trust_remote_code=False, attn_implementation=ATTENTION
        )
    except (OSError, ValueError) as error:
        raise UserError(f"model.base '{base}' could not be loaded as safetensors ({first_line(error)})") from error


def check_context(model: Model, config: Any) -> None:
    """Raises `UserError` where positions would run out."""
    longest = getattr(config, "max_position_embeddings", None)
    if longest and model.context_tokens > longest:
        raise UserError(
            f"model.context_tokens is {model.context_tokens}, but '{model.base}' knows {longest} positions; lower it"
        )


def check_memory(model: Model, tokenizer: Any, dtype: torch.dtype) -> None:
    """Compare what training needs with what is free, on a network without storage. Raises `UserError`."""
    needed, available = needed_nbytes(model, config_of(model, tokenizer), dtype), available_nbytes()
    if needed > available:
        raise UserError(
            f"model.base '{model.base}' needs about {readable(needed)} of memory to train here, "
            f"but {readable(available)} is free for it; take a smaller model, model.lora.rank 8, fewer workers on one "
            "machine, or a larger machine"
        )


def needed_nbytes(model: Model, config: Any, dtype: torch.dtype) -> int:
    """Weights in `dtype` and, for what is trained, the fp32 vectors of the engine;

    Activations not included.
    """
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        network = AutoModelForCausalLM.from_config(config)
    total = sum(p.numel() for p in network.parameters())
    trained = total // 50 if model.lora.rank else total
    return total * dtype.itemsize + trained * 4 * VECTORS_IN_TRAINING
