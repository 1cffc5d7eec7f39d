"""The frames of the tensor plane: a fixed 64-byte header, then one optional payload frame.

Decoding never raises anything but `FrameError`, never allocates by a claimed length, and refuses unknown
fields. What a frame means to a transfer is `transfers.py`; how it travels is `engine.py`.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import msgspec
import xxhash

from medley.protocol.errors import FrameError

MAGIC = b"MDLT"
WIRE_VERSION = 1
HEADER_NBYTES = 64
BODY_NBYTES_MAX = 64 * 1024
U64_MAX = 2**64 - 1

_LAYOUT = struct.Struct("<4sBBHQQQQQ12x")
_CHECK = struct.Struct("<I")


class Type(enum.IntEnum):
    """What a frame says. OFFER and ASK open a transfer; REPLY, REFUSE and (for ASK) DONE close it; POST is alone."""

    OFFER = 1
    ASK = 2
    ACCEPT = 3
    CREDIT = 4
    CHUNK = 5
    DONE = 6
    REPLY = 7
    REFUSE = 8
    WORKING = 9
    POST = 10


class Flag(enum.IntFlag):
    NONE = 0
    REWIND = 1
    BUSY = 2


class Kind(enum.StrEnum):
    """What the bytes are for."""

    UPDATE = "update"
    PULL = "pull"
    RELAY = "relay"
    ARTIFACT = "artifact"
    ACTIVATION = "activation"


Name = Annotated[str, msgspec.Meta(max_length=256)]
Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
Digest = Annotated[bytes, msgspec.Meta(max_length=16)]


class Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=False):
    """The stamp of one tensor object. Two transfers with equal headers carry the same bytes.

    `digest` is the xxh3-128 of all bytes (16 bytes), or empty where the other fields already name immutable
    bytes; resuming after a restart of the receiver needs it. An ASK leaves `nbytes` at 0: the source knows.
    """

    kind: Kind
    run: Name
    name: Name = ""
    generation: Count = 0
    version: Count = 0
    sequence: Count = 0
    nbytes: Count = 0
    digest: Digest = b""

    def __post_init__(self) -> None:
        if len(self.digest) not in (0, 16):
            raise ValueError("a digest is 16 bytes or absent")


@dataclass(frozen=True, slots=True)
class Frame:
    """One decoded frame header. `offset`, `length` and `total` are bytes; `check` is the xxh3-64 of the
    payload.

    ASK: length = largest chunk the asker takes.
    ACCEPT of an OFFER: offset = bytes the receiver has, total = credit limit, length = largest chunk it
    takes.
    ACCEPT of an ASK: total = size of the object, payload = its digest.
    CREDIT: offset = contiguous bytes received, total = absolute limit up to which the sender may send.
    CHUNK: offset and length of the payload, check = its xxh3-64.
    POST: length of the payload, which follows in the same part of the message, check = its xxh3-64; no transfer.
    """

    type: Type
    transfer: int
    flags: Flag = Flag.NONE
    offset: int = 0
    length: int = 0
    total: int = 0
    check: int = 0

    def encode(self) -> bytes:
        head = _LAYOUT.pack(
            MAGIC,
            WIRE_VERSION,
            self.type,
            self.flags,
            self.transfer,
            self.offset,
            self.length,
            self.total,
            self.check,
        )
        return head + _CHECK.pack(xxhash.xxh32_intdigest(head))


_TYPES = {int(one): one for one in Type}
_FLAGS = [Flag(bits) for bits in range(4)]


def decode_frame(part: bytes | memoryview) -> Frame:
    """Raise `FrameError` unless `part` is one undamaged header of this wire version; a POST's payload follows it."""
    raw = bytes(part[:HEADER_NBYTES])
    if len(raw) != HEADER_NBYTES:
        raise FrameError(f"a frame header is {HEADER_NBYTES} bytes, not {len(raw)}")
    if raw[:4] != MAGIC:
        raise FrameError("the frame does not open with the magic word")
    if _CHECK.unpack_from(raw, HEADER_NBYTES - 4)[0] != xxhash.xxh32_intdigest(raw[: HEADER_NBYTES - 4]):
        raise FrameError("the frame header is damaged")
    _, version, kind, flags, transfer, offset, length, total, check = _LAYOUT.unpack_from(raw)
    if version != WIRE_VERSION:
        raise FrameError(f"wire version {version}, we speak {WIRE_VERSION}")
    if kind not in _TYPES:
        raise FrameError(f"unknown frame type {kind}")
    if kind != Type.POST and len(part) != HEADER_NBYTES:
        raise FrameError(f"{len(part) - HEADER_NBYTES} bytes behind a header")
    return Frame(_TYPES[kind], transfer, _FLAGS[flags & 3], offset, length, total, check)


_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(Header)


def encode_header(header: Header) -> bytes:
    return _ENCODER.encode(header)


def decode_header(body: bytes) -> Header:
    """Raise `FrameError` unless `body` is one header with no unknown field and every field within bounds."""
    if len(body) > BODY_NBYTES_MAX:
        raise FrameError(f"a header body of {len(body)} bytes is over {BODY_NBYTES_MAX}")
    try:
        return _DECODER.decode(body)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise FrameError(f"not a tensor header: {error}") from error


def identity_of(header: Header) -> bytes:
    """16 bytes that name the object: equal headers, equal identity."""
    return xxhash.xxh3_128_digest(encode_header(header))


def digest_of(buffers: Sequence[bytes | bytearray | memoryview]) -> bytes:
    """xxh3-128 over the concatenation of `buffers`."""
    state = xxhash.xxh3_128()
    for buffer in buffers:
        state.update(buffer)
    return state.digest()
