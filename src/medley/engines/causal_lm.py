"""The task that Medley is for: a causal language model learns to answer questions.

Samples are `Example`s, rows are packed windows, the loss sees answer tokens only. Everything comes from a
prepared data directory and a tokenizer directory, which are the same bytes on every machine.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import nn

from medley.data.examples import Example
from medley.data.pack import Row, alone, arrays, lengths, pack
from medley.data.prepare import Prepared, open_prepared
from medley.data.template import Window, chat_template, check_questions, windows
from medley.engines.memory import TOKENS_AT_ONCE
from medley.engines.task import Loss, Task
from medley.models.dtype import choose_device
from medley.models.export import save
from medley.models.load import check_memory, load_model
from medley.models.loss import Batch, segment_mask, token_losses
from medley.models.presets import is_preset
from medley.models.tokenizer import load_tokenizer, train_tokenizer
from medley.protocol.spec import JobSpec

# Tokenised examples kept for the next epoch; at about forty bytes a token 40 MiB.
CACHED_TOKENS = 1_000_000
# What one more attention call costs on a processor, in query-key products of one head; measured.
PRODUCTS_A_CALL = 16_384


class CausalLMTask(Task):
    """`tokenizer` is a directory or a hub name; `dtype` is what the network computes in."""

    def __init__(self, spec: JobSpec, prepared: Prepared, tokenizer: Any, dtype: torch.dtype = torch.float32) -> None:
        self.spec = spec
        self.prepared = prepared
        self.tokenizer = tokenizer
        self.dtype = dtype
        self.device = choose_device()
        self._windows = WindowCache(CACHED_TOKENS)

    def check_memory(self) -> None:
        check_memory(self.spec.model, self.tokenizer, self._loaded_dtype())

    def model(self) -> nn.Module:
        return load_model(self.spec.model, self.spec.train.seed, self.tokenizer, self._loaded_dtype())

    def _loaded_dtype(self) -> torch.dtype:
        """Full training starts from exact fp32 numbers and is cast by the engine; a frozen base never needs them."""
        return self.dtype if self.spec.model.lora.rank > 0 else torch.float32

    def dataset(self) -> Sequence[Example]:
        return self.prepared.train

    def heldout(self) -> Sequence[Example] | None:
        """The check questions where the source has them, else the held-out groups."""
        return self.prepared.checks or self.prepared.heldout or None

    def unseen(self) -> Sequence[Example] | None:
        return self.prepared.heldout or None

    def rows(self, samples: list[Any]) -> list[Row]:
        cut = [window for sample in samples for window in self._cut(sample)]
        return pack(cut, self.spec.model.context_tokens) if self.spec.data.packing else alone(cut)

    def micro_batch(self) -> int:
        return max(1, TOKENS_AT_ONCE[self.device.type] // self.spec.model.context_tokens)

    def collate(self, rows: list[Row]) -> Batch:
        made = arrays(rows)
        tokens, positions, segments, labels = (
            torch.from_numpy(a).to(self.device) for a in (made.tokens, made.positions, made.segments, made.labels)
        )
        real = int((made.segments > 0).sum())
        if all(len(row) == 1 for row in rows):
            return Batch(tokens, positions, labels, None, (), real)
        pieces = lengths(rows)
        if self.device.type == "cpu" and pays_in_pieces(pieces, len(rows)):
            return Batch(tokens, positions, labels, None, pieces, real)
        return Batch(tokens, positions, labels, segment_mask(segments), (), real)

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        total, count, correct = token_losses(model, batch)
        return Loss(total, count, correct, batch.real_tokens)

    def save(self, model: nn.Module, directory: Path) -> None:
        save(model, self.tokenizer, directory, chat_template(self.spec.data.template))

    def _cut(self, example: Example) -> list[Window]:
        found = self._windows.get(example)
        if found is None:
            found = windows(self.tokenizer, example, self.spec.model.context_tokens, self.spec.data.template)
            self._windows.put(example, found)
        return found


def pays_in_pieces(lengths: tuple[int, ...], rows: int) -> bool:
    """Whether attention window by window is cheaper than one masked call: products saved against calls made."""
    width = sum(lengths) // rows
    saved = rows * width**2 - sum(n * n for n in lengths)
    return saved > PRODUCTS_A_CALL * len(lengths)


class WindowCache:
    """Tokenised examples, least recently used dropped first once there are more than `limit_tokens`."""

    def __init__(self, limit_tokens: int) -> None:
        self._limit_tokens = limit_tokens
        self._tokens = 0
        self._kept: OrderedDict[Example, list[Window]] = OrderedDict()

    def get(self, key: Example) -> list[Window] | None:
        if key in self._kept:
            self._kept.move_to_end(key)
        return self._kept.get(key)

    def put(self, key: Example, value: list[Window]) -> None:
        self._kept[key] = value
        self._tokens += _tokens(value)
        while self._tokens > self._limit_tokens and len(self._kept) > 1:
            self._tokens -= _tokens(self._kept.popitem(last=False)[1])


def _tokens(value: list[Window]) -> int:
    return sum(len(window.tokens) for window in value)


def prepare_tokenizer(spec: JobSpec, prepared: Prepared, directory: Path) -> Any:
    """The tokenizer directory that every machine gets: trained on the training texts for a preset, copied otherwise.

    Raises `UserError` for a question that fills the context: better here than in the middle of an epoch.
    """
    tokenizer = _tokenizer(spec, prepared, directory)
    every = chain(prepared.train, prepared.heldout)
    check_questions(tokenizer, every, spec.model.context_tokens, spec.data.template)
    return tokenizer


def _tokenizer(spec: JobSpec, prepared: Prepared, directory: Path) -> Any:
    if is_preset(spec.model.base):
        texts = (text for e in prepared.train for text in (e.question, e.answer))
        return train_tokenizer(texts, spec.model.vocab_size, directory, spec.model.context_tokens)
    tokenizer = load_tokenizer(spec.model.base)
    tokenizer.save_pretrained(str(directory))
    return tokenizer


def open_causal_lm(spec: JobSpec, data: Path, tokenizer: Path, dtype: torch.dtype = torch.float32) -> CausalLMTask:
    """The task from its two shipped directories."""
    return CausalLMTask(spec, open_prepared(data), load_tokenizer(tokenizer), dtype)
