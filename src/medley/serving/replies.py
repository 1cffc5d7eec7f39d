"""The answers of the OpenAI API, put together from pieces: chunks of a stream, or one whole body."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from medley.serving.requests import Ask

if TYPE_CHECKING:
    from medley.engines.sampling import TokenLogprob
    from medley.engines.wording import Piece, Wording


@dataclass(slots=True)
class Choice:
    """What one of the n answers is so far."""

    text: list[str] = field(default_factory=list)
    tokens: list[TokenLogprob] = field(default_factory=list)
    generated: int = 0
    finish: str = ""


@dataclass(slots=True)
class Reply:
    """Collects pieces by choice and shows them in the shape of the endpoint."""

    kind: Literal["chat", "text"]
    model: str
    words: Wording
    ask: Ask
    prompt_tokens: int
    id: str
    created: int
    choices: dict[int, Choice] = field(default_factory=dict)

    def opening(self) -> Iterator[dict[str, Any]]:
        """Events before the first piece: chat announces the role of each choice."""
        if self.kind == "chat":
            for index in range(self.ask.n):
                yield self._event([_chat_delta(index, {"role": "assistant", "content": ""}, None, None)])

    def chunk(self, index: int, piece: Piece) -> dict[str, Any]:
        """Takes in a piece and shows it as a stream's event."""
        choice = self.choices.setdefault(index, Choice())
        offset = sum(map(len, choice.text))
        choice.text.append(piece.text)
        choice.tokens.extend(piece.tokens)
        choice.generated, choice.finish = piece.generated, piece.finish
        finish = piece.finish or None
        logprobs = self._logprobs(list(piece.tokens), offset)
        if self.kind == "chat":
            delta = {"content": piece.text} if piece.text or not finish else {}
            return self._event([_chat_delta(index, delta, logprobs, finish)])
        return self._event([_text_choice(index, piece.text, logprobs, finish)])

    def closing(self) -> Iterator[dict[str, Any]]:
        """Events after the last piece: the usage, when it was asked for."""
        if self.ask.include_usage:
            yield self._event([]) | {"usage": self.usage()}

    def whole(self) -> dict[str, Any]:
        """The body of a request that is not streamed."""
        shape = "chat.completion" if self.kind == "chat" else "text_completion"
        choices = [self._choice(index, choice) for index, choice in sorted(self.choices.items())]
        return self._head(shape) | {"choices": choices, "usage": self.usage()}

    def usage(self) -> dict[str, int]:
        completion = sum(c.generated for c in self.choices.values())
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": completion,
            "total_tokens": self.prompt_tokens + completion,
        }

    def _choice(self, index: int, choice: Choice) -> dict[str, Any]:
        text, logprobs = "".join(choice.text), self._logprobs(choice.tokens, 0)
        if self.kind == "text":
            return _text_choice(index, text, logprobs, choice.finish)
        message = {"role": "assistant", "content": text, "refusal": None}
        return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": choice.finish}

    def _event(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        shape = "chat.completion.chunk" if self.kind == "chat" else "text_completion"
        event = self._head(shape) | {"choices": choices}
        return event | {"usage": None} if self.ask.include_usage else event

    def _head(self, shape: str) -> dict[str, Any]:
        return {"id": self.id, "object": shape, "created": self.created, "model": self.model}

    def _logprobs(self, tokens: list[TokenLogprob], offset: int) -> dict[str, Any] | None:
        if self.ask.sampling.logprobs is None:
            return None
        if self.kind == "chat":
            return {"content": [self._chat_token(t) for t in tokens], "refusal": None}
        texts = [self.words.token_text(t.token) for t in tokens]
        starts = [offset + sum(map(len, texts[:i])) for i in range(len(texts))]
        return {
            "tokens": texts,
            "token_logprobs": [t.logprob for t in tokens],
            "top_logprobs": [{self.words.token_text(i): p for i, p in t.top} for t in tokens],
            "text_offset": starts,
        }

    def _chat_token(self, token: TokenLogprob) -> dict[str, Any]:
        top = [self._named(i, p) for i, p in token.top]
        return self._named(token.token, token.logprob) | {"top_logprobs": top}

    def _named(self, token: int, logprob: float) -> dict[str, Any]:
        text = self.words.token_text(token)
        return {"token": text, "logprob": logprob, "bytes": list(text.encode())}


def new_reply(
    kind: Literal["chat", "text"], model: str, words: Wording, ask: Ask, prompt_tokens: int, now_s: int
) -> Reply:
    """An empty reply of /v1/chat/completions or /v1/completions."""
    prefix = "chatcmpl" if kind == "chat" else "cmpl"
    return Reply(kind, model, words, ask, prompt_tokens, f"{prefix}-{secrets.token_hex(12)}", now_s)


def _chat_delta(
    index: int, delta: dict[str, str], logprobs: dict[str, Any] | None, finish: str | None
) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}


def _text_choice(index: int, text: str, logprobs: dict[str, Any] | None, finish: str | None) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}
