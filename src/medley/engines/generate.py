"""Answers from one model on one machine: load a Hugging Face directory, prefill, decode, stream pieces of
text.

Promises: the same (seed, choice, position) draws the same number, so that a repeated request repeats its
answer; a question longer than the context is refused in one sentence; weights come from safetensors only and
no code of the directory is run. Leaves queues, cancellation and HTTP to `medley.serving`: `stream` is a
plain iterator that yields after every step, prefill chunks included, so that whoever drives it can take
turns or stop.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from medley.data.template import PLAIN
from medley.engines.sampling import Sampling, TokenLogprob, draw, logprob
from medley.engines.stored import load_stored
from medley.engines.text import TextStream
from medley.protocol.errors import UserError

PREFILL_TOKENS = 512  # of one step: bounds the memory of a long question and the wait of everyone else

Finish = Literal["", "stop", "length"]
Message = Mapping[str, str]  # role (system, user or assistant), content


@dataclass(frozen=True, slots=True)
class Piece:
    """What one step adds: text (empty while prefilling or inside a character), and on the last piece the
    reason.
    """

    text: str = ""
    tokens: tuple[TokenLogprob, ...] = ()  # filled where log-probabilities were asked for
    generated: int = 0  # tokens so far
    finish: Finish = ""


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt and how to continue it."""

    prompt: tuple[int, ...]
    sampling: Sampling


@dataclass(frozen=True, slots=True)
class Completion:
    """A whole answer. `generated` counts its tokens, the one that ended it included."""

    text: str
    finish: Finish
    generated: int
    tokens: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Generator:
    """A model and its tokenizer, ready to answer. `context` is the longest prompt plus answer, in tokens."""

    model: Any
    tokenizer: Any
    name: str
    context: int
    ends: frozenset[int]

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
        tokenizer("")  # drops a stored truncation now: later, threads that encode at once would trip over it
        return cls(model, tokenizer, name, _context(model), _ends(model, tokenizer))

    def prompt_tokens(self, messages: str | Sequence[Message]) -> tuple[int, ...]:
        """A question, or a conversation, as the tokens after which the answer begins.

        Raises UserError when they leave no room for an answer or the chat template refuses the roles.
        """
        turns = [{"role": "user", "content": messages}] if isinstance(messages, str) else list(messages)
        if self.tokenizer.chat_template:
            text = _by_template(self.tokenizer, turns)
        else:
            text = (self.tokenizer.bos_token or "") + plain_prompt(turns)
        # As in training (medley.data.template): the text itself carries the special tokens.
        return self.fitting(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def text_tokens(self, text: str) -> tuple[int, ...]:
        """Plain text to be continued, without any template. Raises UserError when it fills the context."""
        return self.fitting(self.tokenizer(text, verbose=False)["input_ids"])

    def fitting(self, ids: Sequence[int]) -> tuple[int, ...]:
        """The same tokens, when they are a prompt this model can continue; UserError when not."""
        if not ids:
            raise UserError("the prompt is empty: give at least one token")
        if len(ids) >= self.context:
            raise UserError(
                f"the question has {len(ids)} tokens, but {self.name} has a context of {self.context} tokens,"
                f" which must hold the answer too: shorten the question to at most {self.context - 1} tokens"
            )
        if not 0 <= min(ids) <= max(ids) < self.model.config.vocab_size:
            raise UserError(f"token ids of {self.name} lie between 0 and {self.model.config.vocab_size - 1}")
        return tuple(int(i) for i in ids)

    def decode(self, ids: Sequence[int]) -> str:
        """Tokens as text, without special tokens."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def token_text(self, token: int) -> str:
        """One token as text, special ones included; may be a part of a character."""
        return str(self.tokenizer.decode([token], clean_up_tokenization_spaces=False))

    @property
    def default_stops(self) -> tuple[str, ...]:
        """Where an answer ends in the plain template, whose turns have no token of their own."""
        return () if self.tokenizer.chat_template else ("\nQuestion:",)

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
            logits_V = self._step(prompt[start : start + PREFILL_TOKENS], start, cache)
            yield Piece()
        yield from self._decode_steps(sampling, logits_V, len(prompt), limit, cache)

    def _decode_steps(
        self, sampling: Sampling, logits_V: NDArray[np.float32], prompt: int, limit: int, cache: Any
    ) -> Iterator[Piece]:
        text = TextStream(self.decode, sampling.stop)
        waiting: list[TokenLogprob] = []
        for count in range(1, limit + 1):
            position = prompt + count - 1
            token = draw(logits_V, sampling, position)
            if token in self.ends:
                yield Piece(text.finish(), tuple(waiting), count, "stop")
                return
            if sampling.logprobs is not None:
                waiting.append(logprob(logits_V, token, sampling.logprobs))
            shown = text.push(token)
            if count == limit and not text.stopped:
                shown += text.finish()
            if text.stopped or count == limit:
                yield Piece(shown, tuple(waiting), count, "stop" if text.stopped else "length")
                return
            yield Piece(shown, tuple(waiting) if shown else (), count)
            if shown:
                waiting = []
            logits_V = self._step((token,), position, cache)

    @torch.inference_mode()
    def _step(self, ids: Sequence[int], start: int, cache: Any) -> NDArray[np.float32]:
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


def plain_prompt(turns: Sequence[Message]) -> str:
    """The template of models that have none of their own: "Question: ...\\nAnswer:", turns apart by an empty
    line.
    """
    parts = {
        "system": "{content}\n\n",
        "user": PLAIN.removesuffix("Answer:").replace("{question}", "{content}"),
        "assistant": "Answer: {content}\n\n",
    }
    told = "".join(parts[turn["role"]].format(content=turn["content"]) for turn in turns)
    return told + "Answer:"


def _by_template(tokenizer: Any, turns: Sequence[Message]) -> str:
    from jinja2.exceptions import TemplateError

    try:
        return str(tokenizer.apply_chat_template([dict(t) for t in turns], tokenize=False, add_generation_prompt=True))
    except TemplateError as error:
        raise UserError(f"the model's chat template refuses this conversation: {error}") from error


def _cache(model: Any) -> Any:
    from transformers import DynamicCache

    return DynamicCache(config=model.config)


def _context(model: Any) -> int:
    return int(getattr(model.config, "max_position_embeddings", None) or 2048)


def _ends(model: Any, tokenizer: Any) -> frozenset[int]:
    """The tokens that end an answer: those of the generation configuration, the configuration and the
    tokenizer.
    """
    found: set[int] = set()
    for source in (getattr(model, "generation_config", None), model.config, tokenizer):
        match getattr(source, "eos_token_id", None):
            case int(one):
                found.add(one)
            case [*several]:
                found.update(int(i) for i in several)
    return frozenset(found)
