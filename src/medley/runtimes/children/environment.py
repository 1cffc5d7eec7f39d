"""What a parent tells its engine processes by their environment: where to listen, where to keep files."""

from __future__ import annotations

import os
from pathlib import Path

HOST = "MEDLEY_TENSOR_HOST"
ROOM = "MEDLEY_NODE_DIR"


def host() -> str:
    """The address on which tensor sockets listen; loopback unless the node joined over a network."""
    return os.environ.get(HOST, "127.0.0.1")


def room() -> Path:
    """The node's own directory: caches, temporary files."""
    path = Path(os.environ.get(ROOM, "") or Path.home() / ".medley" / "node")
    path.mkdir(parents=True, exist_ok=True)
    return path
