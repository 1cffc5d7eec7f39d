"""Control messages to protobuf and back, as `medley.proto` lays them out.

The contract is generated from the dataclasses of `protocol.messages` (tools/make_proto.py), and so is this
codec: one pair of closures per class, built once at import. Decoding is strict: sizes are checked before
anything is parsed, an envelope holds exactly one body, nested messages are present, `Literal` values are
allowed ones, numbers are finite, strings and lists are bounded. Whatever fails raises `FrameError`, on both
sides, so that a peer never hears what it would refuse.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import isfinite
from operator import attrgetter
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from google.protobuf.message import DecodeError, EncodeError

from medley.protocol import medley_pb2
from medley.protocol.errors import FrameError
from medley.protocol.messages import FromNode, ToNode

MAX_NBYTES = 16 * 1024 * 1024
MAX_TEXT_NBYTES = 64 * 1024
MAX_DOCUMENT_NBYTES = 8 * 1024 * 1024
MAX_ITEMS = 65_536
# Fields that carry a whole JSON document rather than a name or a sentence.
DOCUMENTS = frozenset({"plan", "body_json"})

_ENVELOPE: Any = vars(medley_pb2)["Envelope"]

T = TypeVar("T")
Convert = Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class Envelope:
    """One message on a stream. `cause` names what led to it; `term` is the coordinator's, 0 from a node."""

    message: Any
    cause: str = ""
    term: int = 0


@dataclass(frozen=True, slots=True)
class _Shape:
    """How one dataclass crosses: `write` makes its protobuf message, `read` the dataclass again."""

    pb: Any
    write: Convert
    read: Convert


def encode(message: FromNode | ToNode, *, cause: str = "", term: int = 0) -> bytes:
    """Bytes of an Envelope around `message`. Raises FrameError for what `decode` would refuse."""
    cls = type(message)
    if cls not in _BODIES:
        raise FrameError(f"{cls.__name__} is not a control message")
    _text(cause, "cause", MAX_TEXT_NBYTES)
    with _sending(cls):
        body = {_BODIES[cls]: _SHAPES[cls].write(message)}
        return _bounded(_ENVELOPE(term=term, cause=cause, **body).SerializeToString())


def decode(data: bytes) -> Envelope:
    """The envelope again. Raises FrameError for bytes that `encode` could not have made."""
    envelope = _parsed(_ENVELOPE, data)
    body = envelope.WhichOneof("body")
    if body is None:
        raise FrameError("an envelope without a message")
    cause = _text(envelope.cause, "cause", MAX_TEXT_NBYTES)
    message = _SHAPES[_BY_BODY[body]].read(getattr(envelope, body))
    return Envelope(message, cause, envelope.term)


def encode_plain(value: Any) -> bytes:
    """Bytes of one dataclass that travels outside an envelope (the join and operator doors)."""
    with _sending(type(value)):
        return _bounded(shape_of(type(value)).write(value).SerializeToString())


def decode_plain(cls: type[T], data: bytes) -> T:
    """The dataclass again; FrameError as in `decode`."""
    shape = shape_of(cls)
    value: T = shape.read(_parsed(shape.pb, data))
    return value


def shape_of(cls: Any) -> _Shape:
    """The codec of a dataclass, built at its first use; the contract must have a message of the same name."""
    known = _SHAPES.get(cls)
    if known is None:
        known = _SHAPES[cls] = _build(cls)
    return known


def body_name(cls: type) -> str:
    """The name of a message's field in the envelope: `EngineUp` -> `engine_up`."""
    return "".join("_" + c.lower() if c.isupper() else c for c in cls.__name__).lstrip("_")


def members(union: Any) -> tuple[type, ...]:
    """The classes of a (nested) union, each once, in order."""
    parts = get_args(union)
    if not parts:
        return (union,)
    return tuple(dict.fromkeys(cls for part in parts for cls in members(part)))


@contextmanager
def _sending(cls: type) -> Iterator[None]:
    try:
        yield
    except (TypeError, ValueError, EncodeError) as error:
        raise FrameError(f"{cls.__name__} cannot be encoded: {error}") from None


def _bounded(data: bytes) -> bytes:
    if len(data) > MAX_NBYTES:
        raise FrameError(f"a message of {len(data)} bytes is over the limit of {MAX_NBYTES}")
    return data


def _parsed(pb: Any, data: bytes) -> Any:
    _bounded(data)
    try:
        parsed = pb.FromString(data)
    except (DecodeError, RecursionError) as error:
        raise FrameError(f"not a message of the control plane: {error}") from None
    # Protobuf merges repeated bodies silently; a size that changes by re-encoding gives them away.
    if parsed.ByteSize() != len(data):
        raise FrameError("a message that says a thing twice, or not in the shortest way")
    return parsed


def _build(cls: type) -> _Shape:
    pb: Any = getattr(medley_pb2, cls.__name__, None)
    if pb is None:
        raise ImportError(f"medley.proto has no message {cls.__name__}: run tools/make_proto.py")
    hints = get_type_hints(cls)
    names = [f.name for f in dataclasses.fields(cls)]
    pairs = [_field(name, hints[name]) for name in names]
    writers = [(name, attrgetter(name), write) for name, (write, _) in zip(names, pairs, strict=True)]
    readers = [read for _, read in pairs]

    def write(value: Any) -> Any:
        fields = {}
        for name, get, convert in writers:
            fields[name] = get(value) if convert is None else convert(get(value))
        return pb(**fields)

    def read(message: Any) -> Any:
        return cls(*[get(message) for get in readers])

    return _Shape(pb, write, read)


def _field(name: str, hint: Any) -> tuple[Convert | None, Convert]:
    """(dataclass value -> protobuf value, or None for itself; protobuf message -> dataclass value)"""
    get = attrgetter(name)
    if get_origin(hint) is tuple:
        return _repeated(name, get_args(hint)[0], get)
    if dataclasses.is_dataclass(hint):
        return _nested(name, shape_of(hint), get)
    check = _check(name, hint)
    if check is None:
        return None, get
    return check, lambda message: check(get(message))


def _nested(name: str, shape: _Shape, get: Convert) -> tuple[Convert, Convert]:
    def read(message: Any) -> Any:
        if not message.HasField(name):
            raise FrameError(f"field '{name}' is missing")
        return shape.read(get(message))

    return shape.write, read


def _repeated(name: str, item: Any, get: Convert) -> tuple[Convert, Convert]:
    shape = shape_of(item) if dataclasses.is_dataclass(item) else None
    write_item = shape.write if shape else _check(name, item)
    read_item = shape.read if shape else write_item

    def counted(items: Any) -> Any:
        if len(items) > MAX_ITEMS:
            raise FrameError(f"field '{name}' has {len(items)} items, over the limit of {MAX_ITEMS}")
        return items

    def write(items: Any) -> Any:
        counted(items)
        return items if write_item is None else [write_item(item) for item in items]

    def read(message: Any) -> Any:
        items = counted(get(message))
        return tuple(items) if read_item is None else tuple([read_item(item) for item in items])

    return write, read


def _check(name: str, hint: Any) -> Convert | None:
    """A value that passes through, or FrameError; None where protobuf itself checks enough."""
    if get_origin(hint) is Literal:
        return _one_of(name, frozenset(get_args(hint)))
    limit = MAX_DOCUMENT_NBYTES if name in DOCUMENTS else MAX_TEXT_NBYTES
    if hint is str:
        return lambda value: _text(value, name, limit)
    if hint is bytes:
        return lambda value: _blob(value, name, limit)
    if hint is float:
        return lambda value: _finite(value, name)
    if hint in (int, bool):
        return None
    raise TypeError(f"the contract has no place for {hint!r} in field '{name}'")


def _one_of(name: str, allowed: frozenset[str]) -> Convert:
    def check(value: Any) -> Any:
        if value not in allowed:
            raise FrameError(f"field '{name}' must be one of {', '.join(sorted(allowed))}")
        return value

    return check


def _text(value: str, name: str, limit: int) -> str:
    # A character is at most four bytes, so most strings need no second look.
    if len(value) * 4 > limit and len(value.encode()) > limit:
        raise FrameError(f"field '{name}' is over the limit of {limit} bytes")
    return value


def _finite(value: float, name: str) -> float:
    if not isfinite(value):
        raise FrameError(f"field '{name}' is not a finite number")
    return value


def _blob(value: bytes, name: str, limit: int) -> bytes:
    if len(value) > limit:
        raise FrameError(f"field '{name}' is over the limit of {limit} bytes")
    return value


_SHAPES: dict[type, _Shape] = {}
_BY_BODY: dict[str, type] = {body_name(cls): cls for cls in members(FromNode | ToNode)}
_BODIES: dict[type, str] = {cls: body for body, cls in _BY_BODY.items()}
for _cls in _BODIES:
    shape_of(_cls)
