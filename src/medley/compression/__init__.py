"""Codecs for updates on their way to the shards, each in its own file and known here by name.

Importing this package does not import torch: roles and job files name codecs, only engines make them. Every
codec has one exact payload size for n elements, so a receiver checks a length before it allocates anything.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from medley.protocol.errors import UserError, did_you_mean
from medley.protocol.spec import Compression

if TYPE_CHECKING:
    from medley.compression.codec import Codec

CODEC_NAMES = ("none", "fp16", "int8", "topk")


def make_codec(options: Compression) -> Codec:
    """The codec that `options.kind` names; both ends make theirs from the same options.

    Raises UserError for a name that is none of CODEC_NAMES and for a density outside (0, 1].
    """
    match options.kind:
        case "none":
            from medley.compression.none import NoCompression

            return NoCompression()
        case "fp16":
            from medley.compression.fp16 import Fp16

            return Fp16()
        case "int8":
            from medley.compression.int8 import Int8

            return Int8()
        case "topk":
            from medley.compression.topk import TopK

            _check_density(options.density)
            return TopK(options.density)
    hint = did_you_mean(str(options.kind), CODEC_NAMES)
    raise UserError(f"train.compression.kind: '{options.kind}' is no codec; {hint}")


def _check_density(density: float) -> None:
    if not 0.0 < density <= 1.0:
        raise UserError(f"train.compression.density: {density} must be above 0 and at most 1")
