"""Pipes through the coordinator, for engines that cannot reach each other: opaque bytes over gRPC.

Start with `docs/design/links.md`; then `relay.py` (the coordinator's part) and `gate.py` (a node's). Nothing is
imported here, because engines need the names of `contract.py` and not gRPC.
"""
