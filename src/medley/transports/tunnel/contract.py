"""What both ends of a pipe agree on: names of targets, paths and metadata of the two calls, limits, reasons.

Whom a name means, and who may call whom, is left to the coordinator's `Switchboard`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Protocol

from medley.protocol.errors import PeerError
from medley.protocol.ids import NodeId

OPEN = "/medley.v1.Tunnel/Open"
TAKE = "/medley.v1.Tunnel/Take"
NAME, WHY, NUMBER = "medley-name", "medley-why", "medley-number"
OPERATOR = "operator "  # before the name of an asker that is no node; no node's name has a space
STANDS = ("medley-pipe", "stands")  # in the answer's initial metadata: from now on bytes

_NAME = re.compile(r"[0-9a-f]{32}")


class Why(StrEnum):
    """Why an engine asks for a pipe. The value crosses the wire and a SOCKS request, so it is one plain word."""

    ASKED = "asked"
    SILENT = "silent"
    WRONG = "wrong"

    def sentence(self, endpoint: str) -> str:
        """For a person."""
        match self:
            case Why.ASKED:
                return "it joined with --transport grpc"
            case Why.SILENT:
                return f"{endpoint} does not answer it"
            case Why.WRONG:
                return f"at {endpoint} it does not meet that engine"


@dataclass(frozen=True, slots=True)
class Limits:
    """Every bound of pipes, for all ends."""

    chunk_nbytes: int = 256 * 1024  # most that is read from a socket into one message
    message_nbytes: int = 1024 * 1024  # most that is taken in one
    pipes_per_node: int = 256  # called and calling
    pipes: int = 4096  # through one coordinator
    dial_s: float = 5.0  # to reach a socket of one's own machine
    take_s: float = 10.0  # for the target's node to take a call
    idle_s: float = 90.0  # without a byte in either direction; a ZeroMQ peer speaks every few seconds
    grace_s: float = 2.0  # for the other direction, after one has ended
    refused_s: float = 0.5  # before an engine whose pipe came to nothing is let go; it is back 50 ms later
    request_s: float = 5.0  # for a local engine to say whom it wants


@dataclass(frozen=True, slots=True)
class Place:
    """What a name means. `node` is empty for the vault and a front end: `host` and `port` are dialled by us."""

    node: NodeId
    words: str
    endpoint: str
    host: str = ""
    port: int = 0


class Switchboard(Protocol):
    """What the coordinator's runtime knows. None of these may block."""

    def admitted(self, node: NodeId) -> None:
        """Raises PeerError with a sentence for a node that may not call or be called (revoked, say)."""

    def find(self, asker: NodeId, name: str) -> Place:
        """The engine of this name, if the asker may speak to it. Raises PeerError."""

    def call(self, node: NodeId, number: int, name: str) -> bool:
        """Tell the node that it is called; False when it is not connected."""

    def piped(self, asker: NodeId, place: Place, why: Why) -> None:
        """A pipe is open, of a pair that had none before or for another reason."""


@lru_cache(maxsize=65_536)
def pipe_name(endpoint: str, public_key: bytes) -> str:
    """The name of an engine: 32 hexadecimal digits of SHA-256. The same on all machines, meaningless elsewhere."""
    return hashlib.sha256(endpoint.encode() + b"\0" + public_key).hexdigest()[:32]


def check_name(name: str) -> str:
    """Raises PeerError for what `pipe_name` cannot have made."""
    if not _NAME.fullmatch(name):
        raise PeerError(f"'{name[:40]}' is no name of an engine")
    return name


def check_why(word: str) -> Why:
    """Raises PeerError."""
    try:
        return Why(word)
    except ValueError:
        raise PeerError(f"'{word[:40]}' is no reason to call") from None


def value_of(metadata: Iterable[tuple[str, str | bytes]] | None, key: str) -> str:
    """The one value of a key of a call's metadata. Raises PeerError."""
    found = [value for name, value in metadata or () if name == key]
    if len(found) != 1 or not isinstance(found[0], str):
        raise PeerError(f"the call says no {key}")
    return found[0]
