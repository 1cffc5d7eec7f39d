"""Names of things, so that a signature says which string it wants.

A *generation* fences everything that a rollback made stale; a *term* fences coordinators; a *version* is the number
of commits applied; a *boot* is one life of a node's process.
"""

from __future__ import annotations

NodeId = str
JobId = str
UpdateId = str
LeaseId = int
Generation = int
Version = int
Term = int

NS_PER_S = 1_000_000_000
NS_PER_MS = 1_000_000


def update_id(node: NodeId, boot: str, number: int) -> UpdateId:
    """Unique over every life of every node: a retry after a crash can never be taken for the lost one."""
    return f"{node}.{boot}.{number}"
