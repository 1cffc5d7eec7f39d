"""A hub model's tensors by HTTP range requests: headers first, then the bytes of whatever is asked for, nothing else.

Promises: all of it is of one revision, the one that the first answer named; a server that answers with something else
than the bytes asked for (the whole file, another length, another size of the file) is not believed; no file is kept and
no code of the repository is looked at. Implements `weightfiles.Tensors` and `remote_weights.Stock`.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import httpx
import torch
from torch import Tensor

from medley.models.remote_weights import filled, piece_of
from medley.models.weightfiles import (
    INDEX,
    MAX_INDEX_NBYTES,
    SINGLE,
    Stored,
    header_length,
    parse_header,
    parse_index,
)
from medley.protocol.errors import UserError, first_line

TIMEOUT_S: Final = 30.0
ATTEMPTS: Final = 4  # for a range that breaks off; each goes on where the one before it ended
COMMIT: Final = "x-repo-commit"
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")


@dataclass(frozen=True, slots=True)
class _File:
    """A file of the repository whose header was read."""

    nbytes: int
    header: bytes
    tensors: Mapping[str, tuple[Stored, int]]


class _Absent(Exception):
    """There is no such file."""


class HubRanges:
    """`open` makes two or three small requests. Not for two threads at once, `close` it once."""

    def __init__(self, name: str, client: httpx.Client, endpoint: str | None, revision: str) -> None:
        self._name, self._client, self._endpoint, self._revision = name, client, endpoint, revision
        self._sizes: dict[str, int] = {}
        self._files: dict[str, _File] = {}
        self._holders: dict[str, str] = {}

    @classmethod
    def open(cls, name: str, endpoint: str | None = None, revision: str = "main") -> HubRanges:
        """The model as the hub has it now, or had it at a commit. Raises UserError.

        `endpoint`: of another hub than the usual one.
        """
        from huggingface_hub import constants
        from huggingface_hub.utils import build_hf_headers

        if endpoint is None and constants.HF_HUB_OFFLINE:
            raise UserError(f"'{name}' is not in the local cache, and HF_HUB_OFFLINE forbids to ask the hub")
        headers = {**build_hf_headers(), "accept-encoding": "identity"}
        made = cls(name, httpx.Client(headers=headers, follow_redirects=True, timeout=TIMEOUT_S), endpoint, revision)
        try:
            made._look()
        except BaseException:
            made.close()
            raise
        return made

    def close(self) -> None:
        self._client.close()

    # -- tensors --------------------------------------------------------------------------------------------------

    def find(self, *names: str) -> Stored:
        """As `Tensors` says."""
        name = next((one for one in names if one in self._holders), names[0])
        return self._placed(name)[1]

    def read(self, stored: Stored, dtype: torch.dtype) -> Tensor:
        """As `Tensors` says; besides it no more than a piece exists."""

        def fill(number: int, into: memoryview) -> None:
            into[:] = self.raw(stored.name, *piece_of(stored, number))

        if self._placed(stored.name)[1] != stored:
            raise UserError(f"tensor '{stored.name}' is none of these weights")
        return filled(stored, dtype, fill)

    def manifest(self) -> Mapping[str, Stored]:
        """As `Stock` says; reads every header."""
        return {name: self._placed(name)[1] for name in self._holders}

    def raw(self, name: str, begin: int, nbytes: int) -> bytes:
        """As `Stock` says."""
        file, stored, offset = self._placed(name)
        if not 0 <= begin <= begin + nbytes <= stored.nbytes:
            raise UserError(f"tensor '{name}' has {stored.nbytes} bytes, not those from {begin} to {begin + nbytes}")
        return self._range(file, offset + begin, nbytes)

    def fingerprint(self) -> str:
        """Of all headers and the revision: bytes of one revision never change."""
        self.manifest()
        digest = hashlib.sha256(self._revision.encode())
        for file in sorted(set(self._holders.values())):
            digest.update(f"\n{file} {self._file(file).nbytes}\n".encode() + self._file(file).header)
        return digest.hexdigest()

    def _placed(self, name: str) -> tuple[str, Stored, int]:
        """The file, the tensor and where it begins there."""
        if name not in self._holders:
            raise UserError(f"the weights are incomplete: there is no tensor '{name}'")
        file = self._holders[name]
        try:
            tensors = self._file(file).tensors
        except _Absent:
            raise UserError(f"the weights are incomplete: the file '{file}' of the index is missing") from None
        if name not in tensors:
            raise UserError(f"the index says that '{file}' holds '{name}', but it does not")
        return file, *tensors[name]

    # -- files ----------------------------------------------------------------------------------------------------

    def _look(self) -> None:
        """Which files there are, and of which revision."""
        try:
            self._holders = dict.fromkeys(self._file(SINGLE).tensors, SINGLE)
        except _Absent:
            self._holders = parse_index(self._index(), f"{self._name}/{INDEX}")

    def _index(self) -> bytes:
        try:
            self._range(INDEX, 0, 1)
        except _Absent:
            raise UserError(f"'{self._name}' has no weights in safetensors format on the hub") from None
        nbytes = self._sizes[INDEX]
        if nbytes > MAX_INDEX_NBYTES:
            raise UserError(f"'{self._name}/{INDEX}' has {nbytes} bytes; at most {MAX_INDEX_NBYTES} are read")
        return self._range(INDEX, 0, nbytes)

    def _file(self, file: str) -> _File:
        if file not in self._files:
            first = self._range(file, 0, 8)
            nbytes = self._sizes[file]
            try:
                header = self._range(file, 8, header_length(first, nbytes))
                placed = parse_header(header, nbytes)
            except ValueError as error:
                where = f"{self._name}/{file}"
                raise UserError(f"'{where}' is not a safetensors file that Medley loads: {error}") from error
            self._files[file] = _File(nbytes, header, {stored.name: (stored, at) for stored, at in placed})
        return self._files[file]

    # -- requests -------------------------------------------------------------------------------------------------

    def _range(self, file: str, begin: int, nbytes: int) -> bytes:
        """Exactly these bytes of a file. Raises UserError and, for a file that is not there, _Absent."""
        content = bytearray()
        why = ""
        for _ in range(ATTEMPTS):
            try:
                with self._asked(file, begin + len(content), begin + nbytes) as answer:
                    for part in answer.iter_raw():
                        content += part
                        if len(content) > nbytes:
                            raise UserError(f"the hub sent more of '{self._name}/{file}' than was asked for")
            except httpx.TransportError as error:
                why = first_line(error)
            if len(content) == nbytes:
                return bytes(content)
        raise UserError(f"the hub does not give '{self._name}/{file}' ({why or 'the answers are too short'})")

    @contextlib.contextmanager
    def _asked(self, file: str, begin: int, end: int) -> Iterator[httpx.Response]:
        from huggingface_hub import hf_hub_url

        url = hf_hub_url(self._name, file, revision=self._revision, endpoint=self._endpoint)
        with self._client.stream("GET", url, headers={"range": f"bytes={begin}-{end - 1}"}) as answer:
            if answer.status_code == httpx.codes.NOT_FOUND:
                raise _Absent
            if answer.status_code >= httpx.codes.INTERNAL_SERVER_ERROR:
                raise httpx.RemoteProtocolError(f"status {answer.status_code}")
            if answer.status_code != httpx.codes.PARTIAL_CONTENT:
                raise UserError(f"the hub answers {answer.status_code} to a range of '{self._name}/{file}'")
            self._believe(file, answer, begin, end)
            yield answer

    def _believe(self, file: str, answer: httpx.Response, begin: int, end: int) -> None:
        """Check that it is the range of the same file that was asked for, and learn the revision."""
        told = _RANGE.fullmatch(answer.headers.get("content-range", ""))
        if told is None or (int(told[1]), int(told[2])) != (begin, end - 1):
            raise UserError(f"the hub answers with another range of '{self._name}/{file}' than was asked for")
        if self._sizes.setdefault(file, int(told[3])) != int(told[3]):
            raise UserError(f"'{self._name}/{file}' changed on the hub while it was read")
        commits = [one.headers[COMMIT] for one in (*answer.history, answer) if COMMIT in one.headers]
        if self._revision == "main" and commits and re.fullmatch(r"[0-9a-f]{40}", commits[0]):
            self._revision = commits[0]
