"""Tiny models with true losses, for training inside the virtual clock: digits, characters by LSTM, characters by Llama.

Their data travels with the package. A task is built once in a process and shared by all simulated workers, which only
read it; each worker has a network of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from medley.data.corpus import load_pairs
from medley.engines.task import Loss, Task, load_task
from medley.protocol.errors import UserError, did_you_mean

DIGITS = Path(__file__).parent / "digits.npz"
EXAM = 5  # every fifth sample is held out


class Tiny(Task):
    """Samples are numbers of rows of tensors that are in memory already."""

    tokens_per_sample = 1

    def __init__(self, network: Callable[[], nn.Module], inputs: Tensor, labels: Tensor) -> None:
        self._network = network
        self._made: tuple[int, nn.Module] | None = None
        self.inputs, self.labels = inputs, labels
        numbers = range(len(inputs))
        self._train = [n for n in numbers if n % EXAM]
        self._exam = list(numbers[::EXAM])

    def model(self) -> nn.Module:
        """Fifty workers of one seed begin with copies of one network."""
        seed = torch.initial_seed()
        if self._made is None or self._made[0] != seed:
            self._made = seed, self._network()
        return deepcopy(self._made[1])

    def dataset(self) -> Sequence[int]:
        return self._train

    def heldout(self) -> Sequence[int]:
        return self._exam

    def collate(self, rows: list[int]) -> Tensor:
        return torch.tensor(rows)

    def loss(self, model: nn.Module, batch: Tensor) -> Loss:
        scores = model(self.inputs[batch])
        wanted = self.labels[batch].flatten()
        scores = scores.view(len(wanted), -1)
        total = functional.cross_entropy(scores, wanted, reduction="sum")
        correct = (scores.argmax(1) == wanted).sum()
        return Loss(total, len(wanted), correct, tokens=len(batch) * self.tokens_per_sample)


class Digits(Tiny):
    """1,797 scans of 8 x 8 grey pixels (Alpaydin and Kaynak 1998); a perceptron of 64, 64 and 10."""

    def __init__(self) -> None:
        with np.load(DIGITS) as kept:
            pixels, labels = kept["pixels"], kept["labels"]
        inputs = torch.from_numpy(pixels.astype(np.float32)).div_(16)
        super().__init__(_perceptron, inputs, torch.from_numpy(labels.astype(np.int64)))


class Lstm(Tiny):
    """Characters of the built-in corpus, 32 at a time: what comes next?"""

    tokens_per_sample = 32

    def __init__(self) -> None:
        codes, letters = characters()
        windows = codes.unfold(0, self.tokens_per_sample + 1, self.tokens_per_sample)
        super().__init__(lambda: _Recurrent(letters), windows[:, :-1], windows[:, 1:])

    def micro_batch(self) -> int:
        return 64


class Llama(Tiny):
    """The same characters, 32 at a time, through a Llama of 228 thousand parameters."""

    tokens_per_sample = 32

    def __init__(self) -> None:
        codes, letters = characters()
        windows = codes.unfold(0, self.tokens_per_sample + 1, self.tokens_per_sample)
        super().__init__(lambda: _llama(letters), windows[:, :-1], windows[:, 1:])

    def micro_batch(self) -> int:
        return 32


TASKS: dict[str, Callable[[], Tiny]] = {"digits-mlp": Digits, "lstm": Lstm, "llama": Llama}


@cache
def tiny_task(name: str) -> Task:
    """A task by its name, or a person's own by "module:Class". Raises UserError with the nearest name."""
    if ":" in name:
        return load_task(name, {}, allow_code=True)
    if name not in TASKS:
        raise UserError(f"there is no task '{name}' for real arithmetic; {did_you_mean(name, TASKS)}")
    return TASKS[name]()


@cache
def characters() -> tuple[Tensor, int]:
    """The built-in corpus as numbers of letters [n], and how many letters there are."""
    text = "\n".join(f"{pair.questions[0]} {pair.answer}" for pair in load_pairs())
    letters = {letter: code for code, letter in enumerate(sorted(set(text)))}
    return torch.tensor([letters[letter] for letter in text]), len(letters)


def _perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


class _Recurrent(nn.Module):
    def __init__(self, letters: int, width: int = 64) -> None:
        super().__init__()
        self.embed = nn.Embedding(letters, 16)
        self.lstm = nn.LSTM(16, width, batch_first=True)
        self.head = nn.Linear(width, letters)

    def forward(self, codes: Tensor) -> Tensor:
        hidden, _ = self.lstm(self.embed(codes))
        return cast(Tensor, self.head(hidden))


class _Decoder(nn.Module):
    """A Llama that gives its scores alone."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, codes: Tensor) -> Tensor:
        return cast(Tensor, self.network(input_ids=codes, use_cache=False).logits)


def _llama(letters: int) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=letters,
        hidden_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        intermediate_size=256,
        max_position_embeddings=64,
        tie_word_embeddings=True,
    )
    return _Decoder(LlamaForCausalLM(config))
