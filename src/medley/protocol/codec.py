"""Plain data to bytes and back, by the name of its class: JSON for the event log, MessagePack for the pipe to an
engine.

Only classes that a caller lists can be decoded, every field is checked against its type, and unknown names, unknown
fields and oversized inputs are refused. (Messages on the network are protobuf: `protocol.wire`.)
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, get_args

import msgspec

from medley.protocol.errors import FrameError

MAX_BYTES = 16 * 1024 * 1024


class Codec:
    """Encodes and decodes one closed union of dataclasses."""

    def __init__(self, union: Any) -> None:
        self._types: dict[str, type] = {t.__name__: t for t in _members(union)}
        self._pack = msgspec.msgpack.Encoder()
        self._unpack = msgspec.msgpack.Decoder(type=tuple[str, msgspec.Raw])
        self._decoders: dict[str, Any] = {name: msgspec.msgpack.Decoder(type=t) for name, t in self._types.items()}

    def encode(self, value: Any) -> bytes:
        """MessagePack of (class name, fields)."""
        return self._pack.encode((type(value).__name__, value))

    def decode(self, data: bytes | memoryview) -> Any:
        """The value again. Raises FrameError for anything `encode` could not have made."""
        if len(data) > MAX_BYTES:
            raise FrameError(f"a message of {len(data)} bytes is over the limit of {MAX_BYTES}")
        try:
            name, body = self._unpack.decode(data)
            return self._decoders[name].decode(body)
        except KeyError:
            raise FrameError(f"unknown message {name!r}") from None
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
            raise FrameError(f"undecodable message: {error}") from None

    def to_json(self, value: Any) -> tuple[str, bytes]:
        """(class name, JSON of the fields), as the event log stores them. Raises FrameError for a number that is
        not finite: JSON has no word for it, so the log could not be read again."""
        return type(value).__name__, _json(value)

    def from_json(self, name: str, body: bytes) -> Any:
        try:
            return msgspec.json.decode(body, type=self._types[name])
        except KeyError:
            raise FrameError(f"unknown record {name!r}") from None
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
            raise FrameError(f"undecodable record {name}: {error}") from None


def text(value: Any) -> str:
    """Compact JSON of plain data; FrameError for what could not be read again (a number that is not finite)."""
    return _json(value).decode()


def parse(data: str | bytes, kind: Any) -> Any:
    """Plain data of this type from JSON; FrameError if it is not."""
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise FrameError(f"undecodable {getattr(kind, '__name__', kind)}: {error}") from None


def _json(value: Any) -> bytes:
    body = msgspec.json.encode(value)
    if b"null" in body:  # an absent value, or a number that is not finite: only reading it tells
        parse(body, type(value))
    return body


def _members(union: Any) -> Iterable[type]:
    parts = get_args(union)
    if not parts:
        return (union,)
    return [t for part in parts for t in _members(part)]
