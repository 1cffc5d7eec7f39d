"""A small model that guesses how a text goes on, one token after the other; it keeps the KV cache of the latest texts.

It draws as the large model does, at each position with the same number, so that where the two agree it guesses right
for sampled answers, too. One thread uses it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from medley.engines.generate import PREFILL_TOKENS, Generator
from medley.engines.sampling import Sampling, draw
from medley.protocol.errors import UserError

TEXTS = 8  # whose KV is kept


@dataclass(slots=True)
class Text:
    """What was read: `tokens` are those whose KV is in the cache."""

    tokens: list[int]
    cache: Any = field(repr=False)


class Guesser:
    """`vocabulary`: the large model's; no other token is guessed. `kv_tokens`: of all texts at once."""

    def __init__(self, generator: Generator, vocabulary: int, kv_tokens: int) -> None:
        self._generator = generator
        self._vocabulary = min(vocabulary, generator.vocabulary)
        self._kv_tokens = kv_tokens
        self._texts: OrderedDict[int, Text] = OrderedDict()

    def guess(self, text: int, tokens: Sequence[int], count: int, sampling: Sampling) -> tuple[tuple[int, ...], int]:
        """At most `count` tokens that may follow, and how many had to be read for it.

        None where the text is too long for it or has a token that it does not know. `text` is the name of a text.
        """
        count = min(count, self._generator.context - len(tokens))
        if count < 1 or len(tokens) + count > self._kv_tokens or max(tokens) >= self._vocabulary:
            return (), 0
        kept = self._kept(text, tokens)
        self._make_room(len(tokens) + count)
        unread = tokens[len(kept.tokens) :]
        for start in range(0, len(unread), PREFILL_TOKENS):
            logits_V = self._read(kept, unread[start : start + PREFILL_TOKENS])
        guessed: list[int] = []
        while True:
            guessed.append(draw(logits_V[: self._vocabulary], sampling, len(tokens) + len(guessed)))
            if len(guessed) == count or guessed[-1] in self._generator.ends:
                return tuple(guessed), len(unread)
            logits_V = self._read(kept, guessed[-1:])

    def warm_up(self) -> None:
        """Raises UserError for a model whose state cannot be taken back to an earlier position."""
        self.guess(0, (0, 1, 0, 1), 2, Sampling())
        held = self._texts[0].cache.get_seq_length()
        if held != len(self._texts[0].tokens):
            raise UserError(f"{self._generator.name} keeps no KV cache, so it cannot take a wrong guess back")
        self._texts.clear()

    def _read(self, text: Text, tokens: Sequence[int]) -> Any:
        """Logits after these tokens, which go on where the text ends."""
        logits_V = self._generator.step(tokens, len(text.tokens), text.cache)
        text.tokens += tokens
        return logits_V

    def _kept(self, name: int, tokens: Sequence[int]) -> Text:
        """The text as far as it is still so, and one token less than all of it: something must be read."""
        from transformers import DynamicCache

        # Layers with a sliding window would forget what a step back needs; without a configuration all are kept whole.
        kept = self._texts.pop(name, None) or Text([], DynamicCache())
        self._texts[name] = kept
        alike = min(_alike(kept.tokens, tokens), len(tokens) - 1)
        if alike < len(kept.tokens):
            kept.cache.crop(alike - len(kept.tokens))
            del kept.tokens[alike:]
        return kept

    def _make_room(self, wanted: int) -> None:
        """For the newest text; those that were not continued for the longest time are dropped."""
        *others, _newest = self._texts
        room = self._kv_tokens - wanted
        held = sum(len(self._texts[name].tokens) for name in others)
        for place, name in enumerate(others):
            if held > room or len(others) - place >= TEXTS:
                held -= len(self._texts.pop(name).tokens)


def _alike(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two texts begin with alike."""
    return next((place for place, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
