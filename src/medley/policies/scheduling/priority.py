"""Higher priorities first, and nobody starves: who waits rises, and takes machines from lower ones that may lose them.

Every job that can begins with what it needs at least; what is left goes to the highest priority, by weight within it.
"""

from __future__ import annotations

from medley.policies.decision import Decision
from medley.policies.scheduling.shares import share
from medley.policies.scheduling.view import Allotment, PoolView


def decide(view: PoolView, now_ns: int) -> Decision[Allotment]:
    draft, line = share(view, now_ns)
    why = "by priority, then by its share"
    return Decision(draft.allotment(line, why), "higher priorities first; who waits rises by one a minute")
