"""A trained network as a Hugging Face directory that plain transformers (and plain PEFT) load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers.utils import logging

from medley.models.lora import is_adapted, save_adapter


def save(network: Any, tokenizer: Any, directory: Path, chat_template: str = "") -> None:
    """Write config, safetensors and tokenizer; with LoRA the adapter directory.

    `directory` is made when missing. `chat_template` (jinja) replaces the tokenizer's own in what is written.
    """
    logging.disable_progress_bar()
    directory.mkdir(parents=True, exist_ok=True)
    if is_adapted(network):
        save_adapter(network, directory)
    else:
        network.config.use_cache = True
        network.save_pretrained(str(directory), safe_serialization=True)
        network.config.use_cache = False
    own = tokenizer.chat_template
    tokenizer.chat_template = chat_template or own
    tokenizer.save_pretrained(str(directory))
    tokenizer.chat_template = own
