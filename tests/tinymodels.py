"""Tiny random models of every family that can be split, as checkpoints on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

VOCABULARY = 300
LAYERS = 4


def tiny(family: str, layers: int = LAYERS, **changes: Any) -> Any:
    """A model with weights large enough that logits differ clearly; fp32, evaluation mode."""
    from transformers import (
        LlamaConfig,
        LlamaForCausalLM,
        MistralConfig,
        MistralForCausalLM,
        OPTConfig,
        OPTForCausalLM,
        Qwen2Config,
        Qwen2ForCausalLM,
        Qwen3Config,
        Qwen3ForCausalLM,
    )

    common = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "max_position_embeddings": 700,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 1,
    }
    rotating = common | {"intermediate_size": 64, "num_key_value_heads": 2, "initializer_range": 0.15}
    made: dict[str, tuple[Any, Any, dict[str, Any]]] = {
        "llama": (LlamaConfig, LlamaForCausalLM, rotating),
        "llama-tied": (LlamaConfig, LlamaForCausalLM, rotating | {"tie_word_embeddings": True}),
        "qwen2": (Qwen2Config, Qwen2ForCausalLM, rotating | {"tie_word_embeddings": True}),
        "qwen3": (Qwen3Config, Qwen3ForCausalLM, rotating | {"head_dim": 16}),
        "mistral": (MistralConfig, MistralForCausalLM, rotating | {"sliding_window": 24}),
        "opt": (OPTConfig, OPTForCausalLM, common | {"ffn_dim": 64, "word_embed_proj_dim": 32, "init_std": 0.15}),
        "opt-projected": (
            OPTConfig,
            OPTForCausalLM,
            common | {"ffn_dim": 64, "word_embed_proj_dim": 16, "init_std": 0.15, "do_layer_norm_before": False},
        ),
    }
    config, network, values = made[family]
    torch.manual_seed(3)
    return network(config(**(values | changes))).eval()


FAMILIES = ("llama", "llama-tied", "qwen2", "qwen3", "mistral", "opt", "opt-projected")


def saved(model: Any, directory: Path, max_shard_size: str = "30KB") -> Path:
    """Several safetensors files and their index, as large models are stored."""
    model.save_pretrained(str(directory), max_shard_size=max_shard_size)
    return directory
