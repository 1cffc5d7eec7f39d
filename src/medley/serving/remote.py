"""A model that a pool serves already, asked over its API: for who would otherwise load the weights a second time.

Needs neither torch nor the model's files. Raises UserError and Unavailable with a sentence.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from medley.jobs.home import coordinator_dir, is_running, operator
from medley.protocol.errors import MedleyError, Unavailable, UserError
from medley.serving.offers import Offer, chosen, offers

if TYPE_CHECKING:
    from medley.engines.sampling import Sampling

KEY = "MEDLEY_API_KEY"
FIND_S = 3.0
CONNECT_S = 5.0
PIECE_S = 300.0  # while machines are replaced, a stream is silent


class TooLong(UserError):
    """The conversation is longer than the model's context."""


@dataclass(frozen=True, slots=True)
class Said:
    """A piece of an answer; the last one has `finish` and how many tokens were read and written."""

    text: str = ""
    finish: str = ""
    prompt_tokens: int = 0
    tokens: int = 0


def offered(model: str) -> Offer | None:
    """MODEL as the pool of this machine serves it now; None where none does, or no coordinator answers."""
    if not is_running(coordinator_dir()):
        return None
    try:
        with operator() as client:
            return chosen(model, offers(client.ask("servings", timeout_s=FIND_S)["servings"]))
    except MedleyError:
        return None


def answer(offer: Offer, messages: Sequence[Mapping[str, str]], sampling: Sampling) -> Iterator[Said]:
    """The answer in pieces, as they come; leaving the iterator ends it at the server, too."""
    import httpx

    body = {
        "model": offer.name,
        "messages": list(messages),
        "max_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "seed": sampling.seed,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    key = os.environ.get(KEY, "") if offer.keyed else ""
    headers = {"authorization": f"Bearer {key}"} if key else {}
    timeout = httpx.Timeout(PIECE_S, connect=CONNECT_S)
    try:
        with (
            httpx.Client(timeout=timeout, trust_env=False) as client,
            client.stream("POST", f"{offer.url}/chat/completions", headers=headers, json=body) as reply,
        ):
            if reply.status_code != 200:
                raise _refused(offer, reply.status_code, json.loads(reply.read()))
            yield from _said(line[6:] for line in reply.iter_lines() if line.startswith("data: "))
    except (httpx.HTTPError, json.JSONDecodeError) as error:
        raise Unavailable(
            f"'{offer.name}' is served at {offer.url}, which does not answer ({error}); --local loads it here"
        ) from error


def _said(events: Iterator[str]) -> Iterator[Said]:
    """The finish is told by the usage, which comes last."""
    finish = ""
    for line in events:
        if line == "[DONE]":
            return
        event: dict[str, Any] = json.loads(line)
        if "error" in event:
            raise Unavailable(str(event["error"]["message"]))
        for choice in event["choices"]:
            finish = choice["finish_reason"] or finish
            if choice["delta"].get("content"):
                yield Said(choice["delta"]["content"])
        if event.get("usage"):
            yield Said("", finish, event["usage"]["prompt_tokens"], event["usage"]["completion_tokens"])


def _refused(offer: Offer, status: int, body: Any) -> MedleyError:
    told = body.get("error", {})
    if status == 401:
        return UserError(f"'{offer.name}' is served at {offer.url} with a key: set {KEY}, or load it here with --local")
    if told.get("code") == "context_length_exceeded":
        return TooLong(str(told.get("message")))
    kind = UserError if status < 500 else Unavailable
    return kind(f"{offer.url} says: {told.get('message', f'status {status}')}")
