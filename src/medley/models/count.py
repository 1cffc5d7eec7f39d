"""How many parameters a network will have, trained and frozen, without its storage: for reckoning ahead."""

from __future__ import annotations

import torch

from medley.models.load import config_of
from medley.models.lora import add_lora
from medley.protocol.spec import Model


def count_parameters(model: Model) -> tuple[int, int]:
    """(trained, frozen) of a preset, a Hugging Face directory or a hub name. Raises UserError as `load_model` does."""
    from transformers import AutoModelForCausalLM

    tokenizer = Vocabulary(model.vocab_size)
    with torch.device("meta"):
        network = AutoModelForCausalLM.from_config(config_of(model, tokenizer))
        if model.lora.rank:
            network = add_lora(network, model.lora)
    trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
    return trained, sum(p.numel() for p in network.parameters()) - trained


class Vocabulary:
    """What a configuration asks of a preset's tokenizer, before there is one."""

    pad_token_id, bos_token_id, eos_token_id = 0, 1, 2

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size

    def __len__(self) -> int:
        return self._vocab_size
