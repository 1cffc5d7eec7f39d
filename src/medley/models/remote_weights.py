"""Weights that lie on another machine, or far away: a manifest of all tensors first, then bytes by tensor and piece.

Promises: nothing is believed that breaks a rule of `weightfiles`; memory is taken for sizes that the manifest and
the model's configuration agree about, for one tensor and one piece at a time. How bytes travel is the business of the
two callables that this is given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, Protocol

import msgspec
import torch
from torch import Tensor

from medley.models.weightfiles import DTYPES, MAX_TENSORS, Stored, bytes_of, stored_of
from medley.protocol.errors import UserError, first_line

PIECE_NBYTES: Final = 16 << 20
MAX_MANIFEST_NBYTES: Final = 8 << 20
MAX_NAME: Final = 240  # characters; the name of a tensor is part of a name on the wire
_NAMES: Final = {dtype: name for name, dtype in DTYPES.items()}


class Stock(Protocol):
    """Weights that can be handed on as they are stored. Raises UserError and OSError."""

    def manifest(self) -> Mapping[str, Stored]: ...

    def raw(self, name: str, begin: int, nbytes: int) -> bytes:
        """Bytes [begin, begin + nbytes) of a tensor."""


class Supplier(Protocol):
    """Whoever is asked, by the thread that loads. Raises MedleyError."""

    def manifest(self, most_nbytes: int) -> bytes:
        """As `encode_manifest` wrote it."""

    def piece(self, name: str, number: int, into: memoryview) -> None:
        """Fill `into`, the exact size, with piece `number` of a tensor."""


class _Entry(msgspec.Struct, forbid_unknown_fields=True):
    dtype: str
    shape: list[int]
    nbytes: int


class _Manifest(msgspec.Struct, forbid_unknown_fields=True):
    fingerprint: str
    tensors: dict[str, _Entry]


def encode_manifest(fingerprint: str, tensors: Mapping[str, Stored]) -> bytes:
    entries = {name: _Entry(_NAMES[t.dtype], list(t.shape), t.nbytes) for name, t in tensors.items()}
    return msgspec.json.encode(_Manifest(fingerprint, entries))


def decode_manifest(content: bytes) -> tuple[str, dict[str, Stored]]:
    """The fingerprint and all tensors. Raises UserError."""
    try:
        manifest = msgspec.json.decode(content, type=_Manifest)
        if len(manifest.tensors) > MAX_TENSORS:
            raise ValueError(f"{len(manifest.tensors)} tensors are over the limit of {MAX_TENSORS}")
        return manifest.fingerprint, {name: _checked(name, entry) for name, entry in manifest.tensors.items()}
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise UserError(f"what came is no list of a model's tensors ({first_line(error)})") from error


def _checked(name: str, entry: _Entry) -> Stored:
    stored = stored_of(name, entry.dtype, entry.shape)
    if len(name) > MAX_NAME:
        raise ValueError(f"tensor '{name[:100]}' has a name of {len(name)} characters")
    if stored.nbytes != entry.nbytes:
        raise ValueError(f"tensor '{name[:100]}' takes {stored.nbytes} bytes, not {entry.nbytes}")
    return stored


def piece_of(stored: Stored, number: int) -> tuple[int, int]:
    """Where a piece of a tensor begins and how many bytes it has. Raises UserError."""
    begin = number * PIECE_NBYTES
    if not 0 <= begin < stored.nbytes:
        raise UserError(f"tensor '{stored.name}' has no piece {number}")
    return begin, min(PIECE_NBYTES, stored.nbytes - begin)


def filled(stored: Stored, dtype: torch.dtype, fill: Callable[[int, memoryview], None]) -> Tensor:
    """The tensor in `dtype`; `fill(number, view)` writes one of its pieces as they are stored."""
    made = torch.empty(stored.shape, dtype=dtype)
    flat = made.view(-1)
    count = PIECE_NBYTES // stored.dtype.itemsize
    scratch = None if stored.dtype == dtype else torch.empty(min(flat.numel(), count), dtype=stored.dtype)
    for number, begin in enumerate(range(0, flat.numel(), count)):
        part = flat[begin : begin + count]
        piece = part if scratch is None else scratch[: part.numel()]
        fill(number, bytes_of(piece))
        if scratch is not None:
            part.copy_(piece)
    return made


class RemoteTensors:
    """`Tensors` from a supplier, which must have the weights of this fingerprint."""

    def __init__(self, supplier: Supplier, fingerprint: str) -> None:
        self._supplier, self._fingerprint = supplier, fingerprint
        self._manifest: dict[str, Stored] = {}

    def find(self, *names: str) -> Stored:
        """As `Tensors` says; asks for the manifest the first time. Raises MedleyError."""
        tensors = self._tensors()
        for name in names:
            if name in tensors:
                return tensors[name]
        raise UserError(f"the weights are incomplete: there is no tensor '{names[0]}'")

    def read(self, stored: Stored, dtype: torch.dtype) -> Tensor:
        """As `Tensors` says; besides it no more than a piece exists. Raises MedleyError."""
        if self._tensors().get(stored.name) != stored:
            raise UserError(f"tensor '{stored.name}' is none of these weights")
        return filled(stored, dtype, lambda number, into: self._supplier.piece(stored.name, number, into))

    def _tensors(self) -> dict[str, Stored]:
        if not self._manifest:
            found, tensors = decode_manifest(self._supplier.manifest(MAX_MANIFEST_NBYTES))
            if found != self._fingerprint:
                raise UserError("the weights at the front are other ones than those that were announced")
            self._manifest = tensors
        return self._manifest
