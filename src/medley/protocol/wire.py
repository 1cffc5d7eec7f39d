"""Control messages to protobuf and back, as `medley.proto` lays them out.

The contract is generated from the dataclasses of `protocol.messages` (tools/make_proto.py), and so is this
codec: one pair of closures per class, built once at import. Decoding is strict: sizes are checked before
anything is parsed, an envelope holds exactly one body, nested messages are present, `Literal` values are
allowed ones, numbers are finite, strings and lists are bounded. Whatever fails raises `FrameError`, on both
sides, so that a peer never hears what it would refuse.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
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
SMALL_NBYTES = min(MAX_TEXT_NBYTES, MAX_ITEMS)  # a message of no more can hold no text and no list that is too long
# Fields that carry a whole JSON document rather than a name or a sentence.
DOCUMENTS = frozenset({"plan", "body_json"})

_ENVELOPE: Any = vars(medley_pb2)["Envelope"]

T = TypeVar("T")
Convert = Callable[[Any], Any]
Check = Callable[[Any], None]


@dataclass(frozen=True, slots=True)
class Envelope:
    """One message on a stream. `cause` names what led to it; `term` is the coordinator's, 0 from a node."""

    message: Any
    cause: str = ""
    term: int = 0


@dataclass(frozen=True, slots=True)
class _Shape:
    """How one dataclass crosses: `write` fills a protobuf message, `read` makes the dataclass again, `within` refuses
    texts and lists that are too long, in either of them."""

    pb: Any
    write: Callable[[Any, Any], None]
    read: Convert
    within: Check


def encode(message: FromNode | ToNode, *, cause: str = "", term: int = 0) -> bytes:
    """Bytes of an Envelope around `message`. Raises FrameError for what `decode` would refuse."""
    cls = type(message)
    name = _BODIES.get(cls)
    if name is None:
        raise FrameError(f"{cls.__name__} is not a control message")
    shape = _SHAPES[cls]
    try:
        envelope = _ENVELOPE(term=term, cause=cause) if cause or term else _ENVELOPE()
        body = getattr(envelope, name)
        body.SetInParent()  # or a message of nothing but zeros would be no message
        shape.write(message, body)
        data: bytes = envelope.SerializeToString()
    except (TypeError, ValueError, EncodeError) as error:
        raise FrameError(f"{cls.__name__} cannot be encoded: {error}") from None
    if len(data) > SMALL_NBYTES:
        _text(cause, "cause", MAX_TEXT_NBYTES)
        shape.within(message)
    return _bounded(data)


def decode(data: bytes) -> Envelope:
    """The envelope again. Raises FrameError for bytes that `encode` could not have made."""
    message, envelope = _opened(data)
    return Envelope(message, envelope.cause, envelope.term)


def decode_message(data: bytes) -> Any:
    """The message alone; FrameError as in `decode`."""
    return _opened(data)[0]


def _opened(data: bytes) -> tuple[Any, Any]:
    """The message, and the envelope as protobuf has it."""
    envelope = _parsed(_ENVELOPE, data)
    name = envelope.WhichOneof("body")
    if name is None:
        raise FrameError("an envelope without a message")
    shape, body = _SHAPES[_BY_BODY[name]], getattr(envelope, name)
    if len(data) > SMALL_NBYTES:
        _text(envelope.cause, "cause", MAX_TEXT_NBYTES)
        shape.within(body)
    return shape.read(body), envelope


def encode_plain(value: Any) -> bytes:
    """Bytes of one dataclass that travels outside an envelope (the join and operator doors)."""
    cls = type(value)
    shape = shape_of(cls)
    try:
        message = shape.pb()
        shape.write(value, message)
        data: bytes = message.SerializeToString()
    except (TypeError, ValueError, EncodeError) as error:
        raise FrameError(f"{cls.__name__} cannot be encoded: {error}") from None
    if len(data) > SMALL_NBYTES:
        shape.within(value)
    return _bounded(data)


def decode_plain(cls: type[T], data: bytes) -> T:
    """The dataclass again; FrameError as in `decode`."""
    shape = shape_of(cls)
    message = _parsed(shape.pb, data)
    if len(data) > SMALL_NBYTES:
        shape.within(message)
    value: T = shape.read(message)
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
    fields = [_field(f.name, hints[f.name]) for f in dataclasses.fields(cls)]
    plain = [f.name for f in fields if f.put is None]
    others = [(f.name, f.put) for f in fields if f.put is not None]
    checks = [(f.name, f.within) for f in fields if f.within is not None]

    def write(value: Any, message: Any) -> None:
        for name in plain:
            setattr(message, name, getattr(value, name))
        for name, put in others:
            put(getattr(value, name), message)

    def within(either: Any) -> None:
        for name, check in checks:
            check(getattr(either, name))

    return _Shape(pb, write, _reader(cls, fields), within)


def _reader(cls: type, fields: list[_Field]) -> Convert:
    """All fields in one look, then those that need another one."""
    names = [f.name for f in fields]
    if len(names) > 1 and all(f.convert is None for f in fields):
        flat = attrgetter(*names)
        return lambda message: cls(*flat(message))
    # One name would come without a tuple around it.
    look = attrgetter(*names) if len(names) > 1 else lambda message: [getattr(message, name) for name in names]
    nested = [f.name for f in fields if f.nested]
    converts = [(place, f.convert) for place, f in enumerate(fields) if f.convert is not None]

    def read(message: Any) -> Any:
        for name in nested:
            if not message.HasField(name):
                raise FrameError(f"field '{name}' is missing")
        values = list(look(message))
        for place, convert in converts:
            values[place] = convert(values[place])
        return cls(*values)

    return read


@dataclass(frozen=True, slots=True)
class _Field:
    """One field's ways: `put` its value into a protobuf message, or None if setting it is enough; `convert` what that
    message holds; `within` refuses what is too long."""

    name: str
    put: Callable[[Any, Any], None] | None = None
    convert: Convert | None = None
    within: Check | None = None
    nested: bool = False


def _field(name: str, hint: Any) -> _Field:
    if get_origin(hint) is tuple:
        return _repeated(name, get_args(hint)[0])
    if dataclasses.is_dataclass(hint):
        return _nested(name, shape_of(hint))
    check, within = _allowed(name, hint), _limit(name, hint)
    if check is None:
        return _Field(name, within=within)

    def put(value: Any, message: Any) -> None:
        setattr(message, name, check(value))

    return _Field(name, put, check, within)


def _nested(name: str, shape: _Shape) -> _Field:
    def put(value: Any, message: Any) -> None:
        inner = getattr(message, name)
        inner.SetInParent()
        shape.write(value, inner)

    return _Field(name, put, shape.read, shape.within, nested=True)


def _repeated(name: str, item: Any) -> _Field:
    shape = shape_of(item) if dataclasses.is_dataclass(item) else None
    check = _allowed(name, item) if shape is None else None
    within_item = shape.within if shape is not None else _limit(name, item)

    def put(items: Any, message: Any) -> None:
        there = getattr(message, name)
        if shape is None:
            there.extend(items if check is None else [check(one) for one in items])
            return
        for one in items:
            shape.write(one, there.add())

    def within(items: Any) -> None:
        if len(items) > MAX_ITEMS:
            raise FrameError(f"field '{name}' has {len(items)} items, over the limit of {MAX_ITEMS}")
        if within_item is not None:
            for one in items:
                within_item(one)

    read = shape.read if shape is not None else check
    convert: Convert = tuple if read is None else lambda items: tuple([read(one) for one in items])
    return _Field(name, put, convert, within)


def _allowed(name: str, hint: Any) -> Convert | None:
    """A value that passes through, or FrameError; None where protobuf itself checks enough."""
    if get_origin(hint) is Literal:
        return _one_of(name, frozenset(get_args(hint)))
    if hint is float:
        return _finite(name)
    if hint in (int, bool, str, bytes):
        return None
    raise TypeError(f"the contract has no place for {hint!r} in field '{name}'")


def _limit(name: str, hint: Any) -> Check | None:
    """Whether a text or a blob may be so long; None where a number is all that there is."""
    limit = MAX_DOCUMENT_NBYTES if name in DOCUMENTS else MAX_TEXT_NBYTES
    if hint is str:
        return lambda value: _text(value, name, limit)
    if hint is bytes:
        return lambda value: _blob(value, name, limit)
    return None


def _one_of(name: str, allowed: frozenset[str]) -> Convert:
    def check(value: Any) -> Any:
        if value not in allowed:
            raise FrameError(f"field '{name}' must be one of {', '.join(sorted(allowed))}")
        return value

    return check


def _text(value: str, name: str, limit: int) -> None:
    # A character is at most four bytes, so most strings need no second look.
    if len(value) * 4 > limit and len(value.encode()) > limit:
        raise FrameError(f"field '{name}' is over the limit of {limit} bytes")


def _finite(name: str) -> Convert:
    def check(value: Any) -> Any:
        if not isfinite(value):
            raise FrameError(f"field '{name}' is not a finite number")
        return value

    return check


def _blob(value: bytes, name: str, limit: int) -> None:
    if len(value) > limit:
        raise FrameError(f"field '{name}' is over the limit of {limit} bytes")


_SHAPES: dict[type, _Shape] = {}
_BY_BODY: dict[str, type] = {body_name(cls): cls for cls in members(FromNode | ToNode)}
_BODIES: dict[type, str] = {cls: body for body, cls in _BY_BODY.items()}
for _cls in _BODIES:
    shape_of(_cls)
