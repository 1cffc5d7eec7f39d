"""The tensors of a Hugging Face checkpoint by name, read by their byte ranges: one safetensors file, or several and
an index.

Promises: nothing but the wanted bytes is read (and, of a checkpoint whose files come from elsewhere, nothing but the
files that hold them); every header is checked before it is believed: its size, known types, sizes that follow from
shapes, tensors that cover the file without gap or overlap; an index cannot name a file outside the checkpoint.
Whoever builds a model from tensors asks for no more than `Tensors`, which others offer too (from another machine, or
drawn at random).
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

import msgspec
import torch
from torch import Tensor

from medley.protocol.errors import UserError

SINGLE: Final = "model.safetensors"
INDEX: Final = "model.safetensors.index.json"
MAX_INDEX_NBYTES: Final = 32 << 20
MAX_FILES: Final = 4096
MAX_HEADER_NBYTES: Final = 4 << 20
MAX_TENSORS: Final = 20_000
MAX_DIMENSIONS: Final = 8
PIECE: Final = 1 << 16  # values that are read at once where they must be converted
DTYPES: Final[Mapping[str, torch.dtype]] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}

Files = Callable[[str], Path]  # where a file of the checkpoint is; fetches it, where need be; OSError if it cannot


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor as it is stored, by the name under which it was found."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class Tensors(Protocol):
    """Where weights come from. Both raise UserError; either may be called from any thread, one call at a time."""

    def find(self, *names: str) -> Stored:
        """The tensor under the first of these names that exists."""

    def read(self, stored: Stored, dtype: torch.dtype) -> Tensor:
        """What `find` found, in `dtype`, on the CPU, in memory of its own."""


@dataclass(frozen=True, slots=True)
class Located:
    """A tensor of a file: bytes [offset, offset + nbytes)."""

    stored: Stored
    path: Path
    offset: int

    @property
    def nbytes(self) -> int:
        return self.stored.nbytes


class _Index(msgspec.Struct):
    weight_map: dict[str, str]


class _Entry(msgspec.Struct, forbid_unknown_fields=True):
    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


@dataclass(slots=True)
class WeightFiles:
    """`open` reads the index or the only header; the headers of other files are read when a tensor of theirs is."""

    files: Files
    holders: Mapping[str, str]  # tensor -> file
    _headers: dict[str, dict[str, Located]] = field(default_factory=dict)

    @classmethod
    def open(cls, files: Files) -> WeightFiles:
        """Raises UserError where there is no safetensors checkpoint, or it breaks a rule."""
        single = _existing(files, SINGLE)
        if single:
            header = read_header(single)
            return cls(files, dict.fromkeys(header, SINGLE), {SINGLE: header})
        index = _existing(files, INDEX)
        if index is None:
            raise UserError(f"there are no weights in safetensors format: neither {SINGLE} nor {INDEX}")
        return cls(files, read_index(index))

    def find(self, *names: str) -> Stored:
        """As `Tensors` says. Raises UserError where there is no tensor of these names."""
        name = next((one for one in names if one in self.holders), "")
        if not name:
            raise UserError(f"the weights are incomplete: there is no tensor '{names[0]}'")
        return self.locate(name).stored

    def read(self, stored: Stored, dtype: torch.dtype) -> Tensor:
        """As `Tensors` says; besides it no more than a piece exists."""
        return read_tensor(self.locate(stored.name), dtype)

    def manifest(self) -> Mapping[str, Stored]:
        """All tensors; reads every header. Raises UserError."""
        return {name: self.locate(name).stored for name in self.holders}

    def raw(self, name: str, begin: int, nbytes: int) -> bytes:
        """Bytes [begin, begin + nbytes) of a tensor as it is stored. Raises UserError and OSError."""
        located = self.locate(name)
        if not 0 <= begin <= begin + nbytes <= located.nbytes:
            raise UserError(f"tensor '{name}' has {located.nbytes} bytes, not those from {begin} to {begin + nbytes}")
        with open(located.path, "rb", buffering=0) as file:
            file.seek(located.offset + begin)
            content = bytearray(nbytes)
            _fill(file, memoryview(content))
        return bytes(content)

    def locate(self, name: str) -> Located:
        """Where the bytes of this tensor lie. Raises UserError."""
        if name not in self.holders:
            raise UserError(f"the weights are incomplete: there is no tensor '{name}'")
        file = self.holders[name]
        if file not in self._headers:
            path = _existing(self.files, file)
            if path is None:
                raise UserError(f"the weights are incomplete: the file '{file}' of the index is missing")
            self._headers[file] = read_header(path)
        if name not in self._headers[file]:
            raise UserError(f"the index says that '{file}' holds '{name}', but it does not")
        return self._headers[file][name]


def directory_files(directory: Path) -> Files:
    """The files of a local directory."""
    return lambda name: directory / name


def read_tensor(located: Located, dtype: torch.dtype) -> Tensor:
    """The tensor in `dtype`, on the CPU, in memory of its own; besides it no more than a piece exists."""
    made = torch.empty(located.stored.shape, dtype=dtype)
    flat = made.view(-1)
    with open(located.path, "rb", buffering=0) as file:
        file.seek(located.offset)
        if located.stored.dtype == dtype:
            _read_into(file, flat)
            return made
        piece = torch.empty(min(flat.numel(), PIECE), dtype=located.stored.dtype)
        for begin in range(0, flat.numel(), PIECE):
            part = piece[: flat.numel() - begin]
            _read_into(file, part)
            flat[begin : begin + PIECE] = part
    return made


def _read_into(file: io.FileIO, values: Tensor) -> None:
    _fill(file, bytes_of(values))


def bytes_of(values: Tensor) -> memoryview:
    """The memory of a flat tensor on the CPU."""
    return values.view(torch.uint8).numpy().data


def _fill(file: io.FileIO, view: memoryview) -> None:
    while view:
        count = file.readinto(view)
        if not count:
            raise UserError(f"'{file.name}' became shorter while it was read")
        view = view[count:]


def read_index(path: Path) -> dict[str, str]:
    """Tensor names and the file of each. Raises UserError."""
    nbytes = path.stat().st_size
    if nbytes > MAX_INDEX_NBYTES:
        raise UserError(f"'{path}' has {nbytes} bytes; an index of weights has at most {MAX_INDEX_NBYTES}")
    return parse_index(path.read_bytes(), str(path))


def parse_index(content: bytes, where: str) -> dict[str, str]:
    """The same of bytes that came from `where`."""
    try:
        holders = msgspec.json.decode(content, type=_Index).weight_map
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise UserError(f"'{where}' is not an index of weights ({error})") from error
    files = set(holders.values())
    if len(files) > MAX_FILES:
        raise UserError(f"'{where}' names {len(files)} files; at most {MAX_FILES} are read")
    for file in files:
        if not file.endswith(".safetensors") or file != os.path.basename(file) or "\\" in file or ":" in file:
            raise UserError(f"'{where}' names the file '{file[:100]}', which is no safetensors file beside it")
    return holders


def read_header(path: Path) -> dict[str, Located]:
    """The tensors of one safetensors file. Raises UserError where a rule is broken."""
    try:
        with open(path, "rb") as file:
            nbytes = os.fstat(file.fileno()).st_size
            header_nbytes = header_length(file.read(8), nbytes)
            placed = parse_header(file.read(header_nbytes), nbytes)
    except ValueError as error:
        raise UserError(f"'{path}' is not a safetensors file that Medley loads: {error}") from error
    return {stored.name: Located(stored, path, offset) for stored, offset in placed}


def header_length(first: bytes, nbytes: int) -> int:
    """From the first eight bytes of a file of so many. Raises ValueError."""
    header_nbytes = int.from_bytes(first, "little") if len(first) == 8 else 0
    if not 2 <= header_nbytes <= min(MAX_HEADER_NBYTES, nbytes - 8):
        raise ValueError(f"its header claims {header_nbytes} bytes, of {nbytes} (limit {MAX_HEADER_NBYTES})")
    return header_nbytes


def parse_header(header: bytes, nbytes: int) -> list[tuple[Stored, int]]:
    """The tensors of a file of so many bytes, and where in the file each begins. Raises ValueError."""
    return _covering(_parse(header), 8 + len(header), nbytes)


def stored_of(name: str, dtype: str, shape: list[int]) -> Stored:
    """A tensor of a known type and a possible shape. Raises ValueError."""
    if dtype not in DTYPES:
        raise ValueError(f"tensor '{name[:100]}' has the type '{dtype[:20]}', known are {', '.join(DTYPES)}")
    if len(shape) > MAX_DIMENSIONS or any(size <= 0 for size in shape):
        raise ValueError(f"tensor '{name[:100]}' has the shape {shape[: MAX_DIMENSIONS + 1]}")
    return Stored(name, DTYPES[dtype], tuple(shape))


def _parse(header: bytes) -> dict[str, _Entry]:
    try:
        raw = msgspec.json.decode(header, type=dict[str, msgspec.Raw])
        raw.pop("__metadata__", None)
        if len(raw) > MAX_TENSORS:
            raise ValueError(f"{len(raw)} tensors are over the limit of {MAX_TENSORS}")
        return {name: msgspec.json.decode(entry, type=_Entry) for name, entry in raw.items()}
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise ValueError(f"its header cannot be read ({error})") from error


def _covering(entries: dict[str, _Entry], data: int, nbytes: int) -> list[tuple[Stored, int]]:
    found = []
    position = 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1].data_offsets):
        begin, end = entry.data_offsets
        stored = stored_of(name, entry.dtype, entry.shape)
        size = stored.nbytes
        if begin != position or end - begin != size:
            raise ValueError(f"tensor '{name[:100]}' should take {size} bytes from {position}, claims {begin} to {end}")
        found.append((stored, data + begin))
        position = end
    if data + position != nbytes:
        raise ValueError(f"its tensors end at byte {data + position}, the file at {nbytes}")
    return found


def _existing(files: Files, name: str) -> Path | None:
    try:
        path = files(name)
    except OSError:
        return None
    return path if path.is_file() else None
