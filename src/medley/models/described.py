"""A model as one machine describes it to another: its configuration and how it is to be held, as JSON without a file.

Whoever is given a description builds the same parts as whoever wrote it; the weights are found by tensor name. The
fingerprint says whether files at hand are these weights: it covers every header whole, and samples of the rest.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec
import torch

from medley.models.dtype import choose_dtype
from medley.models.quantise import linear_nbytes, quantiser
from medley.models.slices import FAMILIES, Sizes, Transform, sizes
from medley.models.weightfiles import WeightFiles, directory_files
from medley.protocol.errors import UserError, first_line

MAX_NBYTES = 1 << 20
SAMPLES = 64  # of each file
SAMPLE_NBYTES = 4096
HEAD_NBYTES = 8 << 20  # at the beginning of a file: what any header fits into


@dataclass(frozen=True, slots=True)
class Described:
    """`path`: where the files may lie, on any machine; the fingerprint decides."""

    name: str
    fingerprint: str
    config: dict[str, Any]
    weights: Literal["none", "int8", "int4"]
    dtype: Literal["fp32", "bf16"]
    path: str = ""

    def text(self) -> str:
        return msgspec.json.encode(self).decode()

    def configuration(self) -> Any:
        """transformers' own object. Raises UserError for a family that is not split into layers."""
        from transformers import AutoConfig

        family = str(self.config.get("model_type", ""))
        if family not in FAMILIES:
            raise UserError(f"'{self.name}' is of the family '{family}', which cannot be split into stages")
        try:
            return AutoConfig.for_model(**self.config)
        except (TypeError, ValueError) as error:
            raise UserError(f"the configuration of '{self.name}' cannot be read ({first_line(error)})") from error

    def torch_dtype(self) -> torch.dtype:
        return choose_dtype(self.dtype)

    def transform(self) -> Transform | None:
        return quantiser(self.weights)

    def sizes(self, config: Any) -> Sizes:
        """Of its parts in memory, held like this."""
        kind = self.weights
        return sizes(config, self.torch_dtype(), None if kind == "none" else lambda one: linear_nbytes(one, kind))

    def files(self) -> WeightFiles | None:
        """The weights where they lie on this machine, if they do."""
        directory = Path(self.path)
        if not self.path or not directory.is_dir():
            return None
        files = WeightFiles.open(directory_files(directory))
        return files if fingerprint(files) == self.fingerprint else None


def described(text: str) -> Described:
    """Raises UserError."""
    try:
        if len(text) > MAX_NBYTES:
            raise ValueError(f"it has {len(text)} characters, {MAX_NBYTES} are allowed")
        return msgspec.json.decode(text, type=Described, strict=True)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise UserError(f"a description of a model cannot be read ({first_line(error)})") from error


def fingerprint(files: WeightFiles) -> str:
    """Of a checkpoint's weights; a second at most, however large they are. Raises OSError."""
    digest = hashlib.sha256()
    for name in sorted(set(files.holders.values())):
        path = files.files(name)
        nbytes = path.stat().st_size
        digest.update(f"{name} {nbytes}\n".encode())
        with open(path, "rb") as file:
            digest.update(file.read(HEAD_NBYTES))
            for n in range(SAMPLES):
                file.seek(max(0, nbytes - SAMPLE_NBYTES) * n // (SAMPLES - 1))
                digest.update(file.read(SAMPLE_NBYTES))
    return digest.hexdigest()
