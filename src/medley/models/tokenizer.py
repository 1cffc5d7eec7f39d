"""Tokenizers: a byte-level BPE trained on a job's own texts for presets, the model's own otherwise.

Promises: byte level, so any input encodes and decodes back; the directory loads with plain `AutoTokenizer`.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from medley.protocol.errors import UserError

PAD, BOS, EOS, SYSTEM, USER, ASSISTANT = "<pad>", "<bos>", "<eos>", "<|system|>", "<|user|>", "<|assistant|>"
SPECIAL = (PAD, BOS, EOS, SYSTEM, USER, ASSISTANT)
BYTES = 256
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def train_tokenizer(texts: Iterable[str], vocab_size: int, directory: Path, context_tokens: int = 1024) -> Any:
    """Train a byte-level BPE of at most `vocab_size` entries and save it. Same texts, same tokenizer."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    if vocab_size < BYTES + len(SPECIAL):
        raise UserError(f"model.vocab_size is {vocab_size}; at least {BYTES + len(SPECIAL)} is needed for all bytes")
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        model_max_length=context_tokens,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(str(directory))
    return tokenizer


def load_tokenizer(base: str | Path) -> Any:
    """The tokenizer of a directory or a hub name. Raises `UserError`."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(base), trust_remote_code=False)
    except (OSError, ValueError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise UserError(f"no tokenizer could be loaded from '{base}' ({reason})") from error
