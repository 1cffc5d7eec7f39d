"""What a safetensors file claims, checked before anything loads it.

The format itself allows headers of 100 MB and leaves room for tensors that share bytes. Here a file passes
only if its header is small, its tensors cover the data exactly once, in known types, and every size follows
from its shape.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

import msgspec

from medley.protocol.errors import Damaged

MAX_HEADER_NBYTES: Final = 4 << 20
MAX_TENSORS: Final = 20_000
MAX_DIMENSIONS: Final = 8
MAX_NAME_CHARACTERS: Final = 512
METADATA: Final = "__metadata__"

ITEM_NBYTES: Final[Mapping[str, int]] = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "U16": 2,
    "I16": 2,
    "F16": 2,
    "BF16": 2,
    "U32": 4,
    "I32": 4,
    "F32": 4,
    "U64": 8,
    "I64": 8,
    "F64": 8,
}


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor: bytes [offset, offset + nbytes) of the file, counted from its start."""

    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


class _Entry(msgspec.Struct, forbid_unknown_fields=True):
    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


def check_tensor_file(path: str | os.PathLike[str]) -> dict[str, TensorEntry]:
    """The tensors of a safetensors file, in the order of their bytes; Damaged, one sentence, if a rule is
    broken."""
    where = Path(path)
    with open(where, "rb") as file:
        nbytes = os.fstat(file.fileno()).st_size
        try:
            return _check(file, nbytes)
        except ValueError as error:
            raise Damaged(f"{where} is not a tensor file that Medley loads: {error}") from error


def _check(file: BinaryIO, nbytes: int) -> dict[str, TensorEntry]:
    if nbytes < 8:
        raise ValueError(f"{nbytes} bytes are too few for a header")
    header_nbytes = int.from_bytes(file.read(8), "little")
    if header_nbytes > MAX_HEADER_NBYTES:
        raise ValueError(f"its header claims {header_nbytes} bytes, the limit is {MAX_HEADER_NBYTES}")
    data_offset = 8 + header_nbytes
    if data_offset > nbytes:
        raise ValueError(f"its header claims {header_nbytes} bytes, the file has {nbytes}")
    return _covering(_parse(file.read(header_nbytes)), data_offset, nbytes)


def _parse(header: bytes) -> dict[str, _Entry]:
    try:
        raw = msgspec.json.decode(header, type=dict[str, msgspec.Raw])
        metadata = raw.pop(METADATA, None)
        if metadata is not None:
            msgspec.json.decode(metadata, type=dict[str, str])
        if len(raw) > MAX_TENSORS:
            raise ValueError(f"{len(raw)} tensors are over the limit of {MAX_TENSORS}")
        return {name: msgspec.json.decode(entry, type=_Entry) for name, entry in raw.items()}
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise ValueError(f"its header cannot be read ({error})") from error


def _covering(entries: dict[str, _Entry], data_offset: int, nbytes: int) -> dict[str, TensorEntry]:
    checked: dict[str, TensorEntry] = {}
    position = 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1].data_offsets):
        begin, end = entry.data_offsets
        expected = _expected_nbytes(name, entry)
        if begin != position or end - begin != expected:
            raise ValueError(
                f"tensor {name!r} should take {expected} bytes from {position} and claims {begin} to {end}"
            )
        checked[name] = TensorEntry(entry.dtype, tuple(entry.shape), data_offset + begin, expected)
        position = end
    if data_offset + position != nbytes:
        raise ValueError(f"its tensors end at byte {data_offset + position}, the file at {nbytes}")
    return checked


def _expected_nbytes(name: str, entry: _Entry) -> int:
    if len(name) > MAX_NAME_CHARACTERS:
        raise ValueError(f"a tensor's name has {len(name)} characters, the limit is {MAX_NAME_CHARACTERS}")
    if entry.dtype not in ITEM_NBYTES:
        raise ValueError(f"tensor {name!r} has the unknown type {entry.dtype!r}")
    if len(entry.shape) > MAX_DIMENSIONS:
        raise ValueError(f"tensor {name!r} has {len(entry.shape)} dimensions, the limit is {MAX_DIMENSIONS}")
    expected = ITEM_NBYTES[entry.dtype]
    for size in entry.shape:
        # Empty tensors could hide under another's offset, and no trainable tensor is empty.
        if size <= 0:
            raise ValueError(f"tensor {name!r} has a dimension of {size}")
        expected *= size
    return expected
