"""The words around a model: its tokenizer, its chat template, where answers end, and tokens as pieces of text.

No weights: whoever serves a model that lies on other machines needs just this. A question longer than the context is
refused in one sentence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from medley.data.template import PLAIN
from medley.engines.sampling import Sampling, TokenLogprob
from medley.engines.text import TextStream
from medley.models.tokenizer import load_tokenizer
from medley.protocol.errors import UserError, first_line

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
class Wording:
    """`context` is the longest prompt plus answer, in tokens; `ends` are the tokens that end an answer."""

    tokenizer: Any
    name: str
    context: int
    vocabulary: int
    ends: frozenset[int]

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
        if not 0 <= min(ids) <= max(ids) < self.vocabulary:
            raise UserError(f"token ids of {self.name} lie between 0 and {self.vocabulary - 1}")
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


class Telling:
    """One answer's tokens as pieces of text: where it stops, what is shown when, which log-probabilities go with it."""

    def __init__(self, words: Wording, sampling: Sampling, limit: int) -> None:
        self._words, self._limit = words, limit
        self._text = TextStream(words.decode, sampling.stop)
        self._waiting: list[TokenLogprob] = []
        self._count = 0

    def take(self, token: int, told: TokenLogprob | None) -> Piece:
        """The next token; nothing may follow a piece that has a `finish`."""
        self._count += 1
        if token in self._words.ends:
            return Piece(self._text.finish(), tuple(self._waiting), self._count, "stop")
        if told is not None:
            self._waiting.append(told)
        shown = self._text.push(token)
        last = self._count == self._limit
        if last and not self._text.stopped:
            shown += self._text.finish()
        if self._text.stopped or last:
            return Piece(shown, tuple(self._waiting), self._count, "stop" if self._text.stopped else "length")
        if not shown:
            return Piece(generated=self._count)
        tokens, self._waiting = tuple(self._waiting), []
        return Piece(shown, tokens, self._count)


def worded(config: Any, generation: Any, tokenizer: Any, name: str) -> Wording:
    """From a model's configurations and its tokenizer."""
    tokenizer("")  # drops a stored truncation now: later, threads that encode at once would trip over it
    context = int(getattr(config, "max_position_embeddings", None) or 2048)
    return Wording(tokenizer, name, context, int(config.vocab_size), _ends(generation, config, tokenizer))


def load_words(directory: Path, name: str) -> Wording:
    """Of a Hugging Face directory, without its weights. Raises UserError."""
    from transformers import AutoConfig, GenerationConfig

    try:
        config = AutoConfig.from_pretrained(str(directory), trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UserError(
            f"the model '{directory}' has no configuration that can be read ({first_line(error)})"
        ) from error
    generation = None
    if (directory / "generation_config.json").is_file():
        generation = GenerationConfig.from_pretrained(str(directory))
    return worded(config, generation, load_tokenizer(directory), name)


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


def _ends(*sources: Any) -> frozenset[int]:
    """The tokens that end an answer: those of the generation configuration, the configuration and the
    tokenizer.
    """
    found: set[int] = set()
    for source in sources:
        match getattr(source, "eos_token_id", None):
            case int(one):
                found.add(one)
            case [*several]:
                found.update(int(i) for i in several)
    return frozenset(found)
