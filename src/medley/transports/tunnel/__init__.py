"""Pipes through the coordinator, for engines that cannot reach each other: opaque bytes over gRPC.

Start with `docs/design/links.md`; then `relay.py` (the coordinator's part) and `gate.py` (a node's).
"""

from medley.transports.tunnel.contract import Limits, Place, Switchboard, Why, pipe_name
from medley.transports.tunnel.gate import Gate
from medley.transports.tunnel.relay import Relay

__all__ = ["Gate", "Limits", "Place", "Relay", "Switchboard", "Why", "pipe_name"]
