"""The operator's end: questions of the command line, asked from ordinary synchronous code.

One channel, made for one process's life. Answers are plain JSON objects; a sentence in an answer becomes a
UserError, a silence becomes Unavailable.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self

import grpc

from medley.protocol import wire
from medley.protocol.doors import Answer, Question
from medley.protocol.errors import UserError
from medley.transports.control.client import unanswered
from medley.transports.control.contract import ASK, FOLLOW, Limits, channel_options
from medley.transports.identity import Credentials


class OperatorClient:
    """Asks one coordinator. Safe to use from several threads; close it, or use it in a `with`."""

    def __init__(self, address: str, identity: Credentials, limits: Limits | None = None) -> None:
        self._address, self._identity = address, identity
        self._limits = limits or Limits()
        credentials = grpc.ssl_channel_credentials(identity.authority_pem, identity.key_pem, identity.cert_pem)
        self._channel = grpc.secure_channel(address, credentials, channel_options(self._limits))
        self._ask: Any = self._channel.unary_unary(ASK)  # type: ignore[call-arg]
        self._follow: Any = self._channel.unary_stream(FOLLOW)  # type: ignore[call-arg]

    @property
    def address(self) -> str:
        """Of the coordinator."""
        return self._address

    @property
    def identity(self) -> Credentials:
        return self._identity

    def ask(self, method: str, body: dict[str, Any] | None = None, timeout_s: float | None = None) -> dict[str, Any]:
        """The answer. Raises UserError with the coordinator's sentence, Unavailable when none comes."""
        try:
            data = self._ask(_question(method, body), timeout=timeout_s or self._limits.ask_timeout_s)
        except grpc.RpcError as error:
            raise unanswered(self._address, error) from None
        return _answer(data)

    def follow(self, method: str, body: dict[str, Any] | None = None) -> Iterator[dict[str, Any]]:
        """Answers for as long as there are any; closing the iterator ends the call at the coordinator too."""
        call = self._follow(_question(method, body))
        try:
            for data in call:
                yield _answer(data)
        except grpc.RpcError as error:
            raise unanswered(self._address, error) from None
        finally:
            call.cancel()

    def close(self) -> None:
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def _question(method: str, body: dict[str, Any] | None) -> bytes:
    return wire.encode_plain(Question(method, json.dumps(body or {}).encode()))


def _answer(data: bytes) -> dict[str, Any]:
    answer = wire.decode_plain(Answer, data)
    if answer.error:
        raise UserError(answer.error)
    value: dict[str, Any] = json.loads(answer.body_json)
    return value
