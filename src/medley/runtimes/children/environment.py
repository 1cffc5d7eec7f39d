"""What a parent tells its engine processes by their environment: where to listen, where to keep files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from medley.protocol.errors import UserError

if TYPE_CHECKING:
    from medley.transports.tensors.ways import Transport

HOST = "MEDLEY_TENSOR_HOST"
ROOM = "MEDLEY_NODE_DIR"
ENCRYPT = "MEDLEY_TENSOR_ENCRYPT"
PORTS = "MEDLEY_TENSOR_PORTS"
TRANSPORT = "MEDLEY_TRANSPORT"
GATE = "MEDLEY_TENSOR_GATE"  # host:port and the secret of the parent's gate, one space between
TRANSPORTS: tuple[Transport, ...] = ("auto", "direct", "grpc")
LINK = "MEDLEY_TENSOR_LINK"  # of an emulated link: host:port and the secret of its proxy, one space between
COMPUTE_FACTOR = "MEDLEY_COMPUTE_FACTOR"  # how many times slower than it can the engine computes
MEMORY_SHARE = "MEDLEY_MEMORY_SHARE"  # read by medley.models.memory


def host() -> str:
    """The address on which tensor sockets listen; loopback unless the node joined over a network."""
    return os.environ.get(HOST, "127.0.0.1")


def encrypted() -> bool:
    """Whether tensor sockets speak CURVE: the pool decides, for all of its jobs, because its vault serves them all."""
    return os.environ.get(ENCRYPT, "1") != "0"


def transport(wanted: str | None = None) -> Transport:
    """How engines reach each other. Raises UserError for what is none of TRANSPORTS."""
    wanted = os.environ.get(TRANSPORT, "") if wanted is None else wanted
    for one in TRANSPORTS:
        if wanted == one or (not wanted and one == "auto"):
            return one
    raise UserError(f"'{wanted}' is no transport: write {', '.join(TRANSPORTS[:-1])} or {TRANSPORTS[-1]}")


def gate() -> tuple[str, str]:
    """Where the parent's gate listens, and its secret; empty ones where it has none."""
    proxy, _, secret = os.environ.get(GATE, "").partition(" ")
    return proxy, secret


def emulated_link() -> tuple[str, str]:
    """Where the proxy of an emulated link listens, and its secret; empty ones where there is none."""
    proxy, _, secret = os.environ.get(LINK, "").partition(" ")
    return proxy, secret


def compute_factor() -> float:
    """How many times slower than it can this engine is to compute; 1 where nobody wants a straggler."""
    return float(os.environ.get(COMPUTE_FACTOR, "") or 1.0)


def ports(wanted: str | None = None) -> range:
    """Ports for tensor sockets, as "7080-7179"; empty: whatever the system gives. Raises UserError."""
    wanted = os.environ.get(PORTS, "") if wanted is None else wanted
    if not wanted:
        return range(0)
    first, dash, last = wanted.partition("-")
    if not first.isdecimal() or not (last if dash else first).isdecimal():
        raise UserError(f"{PORTS}={wanted} is no range of ports: write it as 7080-7179")
    found = range(int(first), int(last if dash else first) + 1)
    if not found or found[0] < 1 or found[-1] >= 1 << 16:
        raise UserError(f"{PORTS}={wanted} is no range of ports: write it as 7080-7179")
    return found


def room() -> Path:
    """The node's own directory: caches, temporary files."""
    path = Path(os.environ.get(ROOM, "") or Path.home() / ".medley" / "node")
    path.mkdir(parents=True, exist_ok=True)
    return path
