"""The tensor plane: chunks under credit over ZeroMQ, resumable, checked, encrypted with CURVE.

Start with `plane.py`; the protocol is told in `docs/protocol-tensors.md`.
"""

from medley.transports.tensors.contract import (
    Accept,
    Already,
    Keeper,
    Limits,
    Peer,
    Refuse,
    Refused,
    Source,
)
from medley.transports.tensors.curve import Curve
from medley.transports.tensors.partfile import FilePart
from medley.transports.tensors.plane import TensorPlane
from medley.transports.tensors.ways import Detour, Emulated, Transport, Ways
from medley.transports.tensors.wire import Header, Kind, digest_of

__all__ = [
    "Accept",
    "Already",
    "Curve",
    "Detour",
    "Emulated",
    "FilePart",
    "Header",
    "Keeper",
    "Kind",
    "Limits",
    "Peer",
    "Refuse",
    "Refused",
    "Source",
    "TensorPlane",
    "Transport",
    "Ways",
    "digest_of",
]
