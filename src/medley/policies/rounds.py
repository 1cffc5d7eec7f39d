"""When to commit, and whom.

`sync`: everyone in the round; once a quorum is in, the rest get the grace (median + k * MAD of recent rounds).
`async`: each update as it arrives. `local-sgd`: a quorum of the workers at work, or the grace after the first
arrival. A deterministic run waits for every slot, however long.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from medley.policies.decision import Decision
from medley.protocol.ids import NS_PER_S
from medley.protocol.spec import Train


@dataclass(frozen=True, slots=True)
class RoundView:
    """`complete` of `expected` updates (in a round) or nodes (elsewhere) are here.

    The first came at `first_ns`, the round opened at `opened_ns`.
    """

    complete: int
    expected: int
    opened_ns: int
    first_ns: int
    allowance_ns: int


def least(train: Train, expected: int) -> int:
    """With fewer complete ones than this nothing is ever committed."""
    if train.sync.mode == "async":
        return 1
    return expected if train.deterministic else max(1, ceil(train.sync.quorum * expected))


def close(train: Train, view: RoundView, now_ns: int) -> Decision[bool]:
    """Commit what is complete now, or wait?"""
    if view.complete == 0:
        return Decision(False, "nothing is complete")
    if train.sync.mode == "async":
        return Decision(True, "async: each update as it arrives")
    if view.complete >= view.expected:
        return Decision(True, f"all {view.expected} are in")
    if train.deterministic:
        return Decision(False, f"deterministic: {view.complete} of {view.expected} slots are in")
    wanted = least(train, view.expected)
    late = now_ns - view.opened_ns > view.allowance_ns
    if view.complete >= wanted and late:
        waited_s = (now_ns - view.opened_ns) / NS_PER_S
        return Decision(True, f"quorum {view.complete} of {view.expected} after {waited_s:.1f} s; grace is over")
    if train.sync.mode == "local-sgd" and view.complete >= wanted and wanted < view.expected:
        patience = view.allowance_ns // 4
        if now_ns - view.first_ns > patience:
            return Decision(True, f"quorum {view.complete} of {view.expected}; slack is used up")
    return Decision(False, f"{view.complete} of {view.expected} are in; quorum is {wanted}")
