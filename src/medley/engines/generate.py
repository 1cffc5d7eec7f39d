"""Answers from one model on one machine: load a Hugging Face directory, prefill, decode, stream pieces of
text.

Promises: the same (seed, choice, position) draws the same number, so that a repeated request repeats its
answer; a question longer than the context is refused in one sentence; weights come from safetensors only and
no code of the directory is run. Leaves queues, cancellation and HTTP to `medley.serving`: `stream` is a
plain iterator that yields after every step, prefill chunks included, so that whoever drives it can take
turns or stop.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from medley.engines.sampling import Sampling, TokenLogprob, draw, logprob
from medley.engines.stored import load_stored
from medley.engines.wording import Finish, Piece, Request, Telling, Wording, worded
from medley.protocol.errors import UserError

PREFILL_TOKENS = 512  # of one step: bounds the memory of a long question and the wait of everyone else


@dataclass(frozen=True, slots=True)
class Completion:
    """A whole answer. `generated` counts its tokens, the one that ended it included."""

    text: str
    finish: Finish
    generated: int
    tokens: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Generator(Wording):
    """A model and its tokenizer, ready to answer."""

    model: Any

    @classmethod
    def load(cls, directory: str | Path, dtype: str = "auto", name: str = "") -> Generator:
        """The model of a Hugging Face directory, or of a PEFT adapter directory and the base that it
        names.
        """
        model, tokenizer = load_stored(Path(directory), dtype)
        return cls.of(model, tokenizer, name or Path(directory).name)

    @classmethod
    def of(cls, model: Any, tokenizer: Any, name: str) -> Generator:
        """A model that is in memory already; it is put into evaluation mode."""
        model.eval()
        words = worded(model.config, getattr(model, "generation_config", None), tokenizer, name)
        return cls(words.tokenizer, name, words.context, words.vocabulary, words.ends, model)

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """All answers, one after another."""
        return [self.complete(request) for request in requests]

    def complete(self, request: Request) -> Completion:
        """The whole answer to one request."""
        pieces = list(self.stream(request))
        return Completion(
            "".join(p.text for p in pieces),
            pieces[-1].finish,
            pieces[-1].generated,
            tuple(t for p in pieces for t in p.tokens),
        )

    def answer(self, question: str, max_tokens: int = 128, temperature: float = 0.0, seed: int = 0) -> str:
        """The text of one answer to one question; greedy unless a temperature is given."""
        sampling = Sampling(max_tokens, temperature, seed=seed, stop=self.default_stops)
        return self.complete(Request(self.prompt_tokens(question), sampling)).text.strip()

    def stream(self, request: Request) -> Iterator[Piece]:
        """Pieces of one answer; the last one has a `finish`. Yields after every forward pass."""
        sampling, prompt = request.sampling, self.fitting(request.prompt)
        room = self.context - len(prompt)
        limit = room if sampling.max_tokens is None else min(room, sampling.max_tokens)
        if limit < 1:
            yield Piece(finish="length")
            return
        cache = _cache(self.model)
        for start in range(0, len(prompt), PREFILL_TOKENS):
            logits_V = self.step(prompt[start : start + PREFILL_TOKENS], start, cache)
            yield Piece()
        yield from self._decode_steps(sampling, logits_V, len(prompt), limit, cache)

    def _decode_steps(
        self, sampling: Sampling, logits_V: NDArray[np.float32], prompt: int, limit: int, cache: Any
    ) -> Iterator[Piece]:
        telling = Telling(self, sampling, limit)
        for position in range(prompt, prompt + limit):
            token = draw(logits_V, sampling, position)
            told = None if sampling.logprobs is None else logprob(logits_V, token, sampling.logprobs)
            piece = telling.take(token, told)
            yield piece
            if piece.finish:
                return
            logits_V = self.step((token,), position, cache)

    @torch.inference_mode()
    def step(self, ids: Sequence[int], start: int, cache: Any) -> NDArray[np.float32]:
        """Logits [vocabulary] after `ids`, which stand at absolute positions `start` and on; extends the
        cache.
        """
        device = self.model.device
        ids_1S = torch.tensor([list(ids)], device=device)
        positions_1S = torch.arange(start, start + len(ids), device=device)[None]
        out = self.model(
            input_ids=ids_1S,
            position_ids=positions_1S,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits_V: NDArray[np.float32] = out.logits[0, -1].float().cpu().numpy()
        if not np.isfinite(logits_V).all():
            raise UserError(
                f"{self.name} answers with numbers that are not finite: its weights are damaged or its "
                "training diverged; train again with a lower learning rate"
            )
        return logits_V

    @torch.inference_mode()
    def answer_loss(self, prompt: Sequence[int], answer: Sequence[int]) -> tuple[float, int]:
        """Summed cross-entropy (nats) of the answer's tokens after the prompt, and how many of them were
        scored.

        Answer tokens beyond the context are not scored.
        """
        ids = [*prompt, *answer][: self.context]
        scored = len(ids) - len(prompt)
        if scored < 1:
            return 0.0, 0
        ids_1S = torch.tensor([ids], device=self.model.device)
        logits_1SV = self.model(input_ids=ids_1S, use_cache=False, logits_to_keep=scored + 1).logits
        loss = torch.nn.functional.cross_entropy(logits_1SV[0, :-1].float(), ids_1S[0, -scored:], reduction="sum")
        return float(loss), scored


def _cache(model: Any) -> Any:
    from transformers import DynamicCache

    return DynamicCache(config=model.config)
