"""Passes a question on to a process that serves a model over the OpenAI API, and its answer back in
pieces.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import httpx

from medley.protocol.errors import Unavailable

CONNECT_TIMEOUT_S = 5.0
PIECE_TIMEOUT_S = 120.0  # a long question on a slow machine is silent while it is read
ANSWER_TOKENS_MAX = 1024


async def relay(
    url: str, model: str, messages: Sequence[Mapping[str, str]], key: str = "", temperature: float = 0.0
) -> AsyncIterator[str]:
    """Pieces of the answer from `url` (http://host:port/v1). Raises Unavailable with a sentence."""
    body = {"model": model, "messages": list(messages), "stream": True, "temperature": temperature}
    headers = {"authorization": f"Bearer {key}"} if key else {}
    timeout = httpx.Timeout(PIECE_TIMEOUT_S, connect=CONNECT_TIMEOUT_S)
    try:
        async with (
            httpx.AsyncClient(timeout=timeout, trust_env=False) as client,
            client.stream(
                "POST", f"{url}/chat/completions", headers=headers, json=body | {"max_tokens": ANSWER_TOKENS_MAX}
            ) as answer,
        ):
            if answer.status_code != 200:
                raise Unavailable(_sentence(json.loads(await answer.aread())))
            async for line in answer.aiter_lines():
                if line.startswith("data: ") and line != "data: [DONE]":
                    yield _text(json.loads(line[6:]))
    except (httpx.HTTPError, json.JSONDecodeError) as error:
        raise Unavailable(f"the process that serves '{model}' does not answer: {error}") from error


def _text(event: Any) -> str:
    if "error" in event:
        raise Unavailable(_sentence(event))
    return "".join(choice["delta"].get("content") or "" for choice in event["choices"])


def _sentence(body: Any) -> str:
    return str(body["error"]["message"])
