"""The bodies of the OpenAI API, read into frozen values; what we cannot honour is refused, never ignored
silently.

Parameters that change nothing here (user, metadata, ...) are tolerated; those that would change the answer
are refused with OpenAI's error shape unless they carry their neutral value. No model and no I/O in this file.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from medley.engines.sampling import Sampling
from medley.protocol.errors import did_you_mean

CHOICES_MAX = 8  # n, and prompts x n
STOPS_MAX = 4
STOP_CHARACTERS_MAX = 256
MESSAGES_MAX = 2048
TOP_LOGPROBS_MAX = 20
TOKENS_MAX = 1 << 20

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
HARMLESS = frozenset(
    [
        "user",
        "metadata",
        "store",
        "service_tier",
        "parallel_tool_calls",
        "safety_identifier",
        "prompt_cache_key",
        "prompt_cache_retention",
    ]
)
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "response_format": ({"type": "text"},),
    "tools": ([],),
    "functions": ([],),
    "tool_choice": ("none", "auto"),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "reasoning_effort": ("none",),
    "verbosity": ("medium",),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "audio": (),
    "prediction": (),
    "web_search_options": (),
}
SHARED = frozenset(
    [
        "model",
        "stream",
        "stream_options",
        "n",
        "seed",
        "temperature",
        "top_p",
        "top_k",
        "max_tokens",
        "stop",
        "logprobs",
    ]
)
CHAT = SHARED | {"messages", "max_completion_tokens", "top_logprobs"}
TEXT = SHARED | {"prompt"}


class ApiError(Exception):
    """A request that is answered with an error in OpenAI's shape."""

    def __init__(
        self,
        message: str,
        param: str | None = None,
        code: str | None = None,
        status: int = 400,
        type: str = "invalid_request_error",
    ) -> None:
        super().__init__(message)
        self.status = status
        self.body = {"error": {"message": message, "type": type, "param": param, "code": code}}


@dataclass(frozen=True, slots=True)
class Ask:
    """What both endpoints share. `sampling.stop` holds the request's own stop strings only."""

    model: str
    n: int
    sampling: Sampling
    stream: bool
    include_usage: bool


@dataclass(frozen=True, slots=True)
class ChatAsk:
    """POST /v1/chat/completions."""

    ask: Ask
    messages: tuple[dict[str, str], ...]


@dataclass(frozen=True, slots=True)
class TextAsk:
    """POST /v1/completions; a prompt is text or token ids."""

    ask: Ask
    prompts: tuple[str | tuple[int, ...], ...]


def read_chat(body: Any) -> ChatAsk:
    """A chat request. Raises ApiError."""
    given = _fields(body, CHAT)
    ask = _shared(given, _chat_logprobs(given), ("max_completion_tokens", "max_tokens"))
    messages = given.get("messages")
    if not isinstance(messages, list) or not messages:
        raise ApiError("'messages' must be a list of at least one message", "messages")
    if len(messages) > MESSAGES_MAX:
        raise ApiError(f"at most {MESSAGES_MAX} messages", "messages")
    return ChatAsk(ask, tuple(_message(m, f"messages[{i}]") for i, m in enumerate(messages)))


def read_text(body: Any) -> TextAsk:
    """A completion request. Raises ApiError."""
    given = _fields(body, TEXT)
    logprobs = _integer(given, "logprobs", 0, 5)
    ask = _shared(given, logprobs, ("max_tokens",))
    prompts = _prompts(given.get("prompt"))
    if len(prompts) * ask.n > CHOICES_MAX:
        raise ApiError(f"prompts x n is at most {CHOICES_MAX}", "prompt")
    return TextAsk(ask, prompts)


def _fields(body: Any, known: frozenset[str] | set[str]) -> dict[str, Any]:
    """The non-null parameters that matter."""
    if not isinstance(body, dict):
        raise ApiError("the body must be a JSON object")
    given = {name: value for name, value in body.items() if value is not None and name not in HARMLESS}
    for name, value in given.items():
        if name in known:
            continue
        if name not in NEUTRAL:
            hint = did_you_mean(name, known)
            raise ApiError(f"unrecognized request argument: {name}; {hint}", name, "unknown_parameter")
        if value not in NEUTRAL[name]:
            raise ApiError(f"'{name}' is not supported here", name, "unsupported_parameter")
    return {name: value for name, value in given.items() if name in known}


def _shared(given: dict[str, Any], logprobs: int | None, limits: tuple[str, ...]) -> Ask:
    model = given.get("model")
    if not isinstance(model, str) or not model:
        raise ApiError("you must provide a model parameter", "model")
    lengths = [_integer(given, name, 1, TOKENS_MAX) for name in limits]
    seed = _integer(given, "seed", -(1 << 63), (1 << 63) - 1)
    sampling = Sampling(
        max_tokens=next((n for n in lengths if n is not None), None),
        temperature=_number(given, "temperature", 0.0, 2.0, 1.0),
        top_p=_number(given, "top_p", 0.0, 1.0, 1.0),
        top_k=_integer(given, "top_k", 0, TOKENS_MAX) or 0,
        seed=secrets.randbits(63) if seed is None else seed,
        stop=_stops(given.get("stop")),
        logprobs=logprobs,
    )
    stream = _flag(given, "stream")
    options = given.get("stream_options", {})
    if not isinstance(options, dict) or not set(options) <= {"include_usage", "include_obfuscation"}:
        raise ApiError("'stream_options' knows include_usage only", "stream_options")
    return Ask(model, _integer(given, "n", 1, CHOICES_MAX) or 1, sampling, stream, _flag(options, "include_usage"))


def _message(message: Any, where: str) -> dict[str, str]:
    if not isinstance(message, dict):
        raise ApiError("a message is an object with role and content", where)
    role = message.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise ApiError(f"role must be one of {', '.join(ROLES)}", f"{where}.role")
    return {"role": ROLES[role], "content": _content(message.get("content"), f"{where}.content")}


def _content(content: Any, where: str) -> str:
    """A string, or the joined text parts of a list."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not content:
        raise ApiError("content must be a string or a list of text parts", where)
    for part in content:
        if not (isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)):
            raise ApiError("only parts of type 'text' are supported", where)
    return "".join(part["text"] for part in content)


def _prompts(prompt: Any) -> tuple[str | tuple[int, ...], ...]:
    match prompt:
        case str():
            return (prompt,)
        case [*ids] if ids and all(_is_integer(i) for i in ids):
            return (tuple(ids),)
        case [*several] if several and all(isinstance(p, str) for p in several):
            return tuple(several)
        case [*several] if several and all(
            isinstance(p, list) and p and all(_is_integer(i) for i in p) for p in several
        ):
            return tuple(tuple(p) for p in several)
    raise ApiError("'prompt' must be a string, a list of strings, token ids, or a list of those", "prompt")


def _stops(stop: Any) -> tuple[str, ...]:
    stops = [stop] if isinstance(stop, str) else [] if stop is None else stop
    if not isinstance(stops, list) or len(stops) > STOPS_MAX or not all(isinstance(s, str) and s for s in stops):
        raise ApiError(f"'stop' must be a string or a list of at most {STOPS_MAX} strings", "stop")
    if any(len(s) > STOP_CHARACTERS_MAX for s in stops):
        raise ApiError(f"a stop string has at most {STOP_CHARACTERS_MAX} characters", "stop")
    return tuple(stops)


def _chat_logprobs(given: dict[str, Any]) -> int | None:
    top = _integer(given, "top_logprobs", 0, TOP_LOGPROBS_MAX)
    if _flag(given, "logprobs"):
        return top or 0
    if top is not None:
        raise ApiError("'top_logprobs' needs 'logprobs': true", "top_logprobs")
    return None


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _integer(given: Mapping[str, Any], name: str, low: int, high: int) -> int | None:
    value = given.get(name)
    if value is not None and not (_is_integer(value) and low <= value <= high):
        raise ApiError(f"'{name}' must be a whole number from {low} to {high}", name)
    return value


def _number(given: Mapping[str, Any], name: str, low: float, high: float, default: float) -> float:
    value = given.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ApiError(f"'{name}' must be a number from {low:g} to {high:g}", name)
    return float(value)


def _flag(given: Mapping[str, Any], name: str) -> bool:
    value = given.get(name, False)
    if not isinstance(value, bool):
        raise ApiError(f"'{name}' must be true or false", name)
    return value
