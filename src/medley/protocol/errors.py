"""Every exception Medley raises on purpose, in one tree.

    MedleyError
    ├── UserError           a person's mistake: one sentence, exit status 2, no traceback
    ├── PeerError           a peer broke the contract: logged and refused, never stops a role
    │   └── FrameError      bytes on a wire that are not ours, too large, or damaged
    ├── Damaged             a file we wrote does not match its digest any more
    └── Unavailable         a machine or a service that should answer does not

A role never raises for what a peer did: it answers with `Reject`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class MedleyError(Exception):
    """Base of everything Medley raises on purpose."""


class UserError(MedleyError):
    """A person's mistake. `str(error)` is one sentence: what was wrong, where, and what would be right."""


class PeerError(MedleyError):
    """A peer sent something the contract does not allow."""


class FrameError(PeerError):
    """Bytes on a wire that are not a frame of ours, are too large, or fail their check."""


class Damaged(MedleyError):
    """A stored file does not match its digest."""


class Unavailable(MedleyError):
    """A machine or a service that should answer does not."""


def first_line(error: Exception) -> str:
    """What an error of somebody else's says, short enough for a sentence of ours."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def did_you_mean(wrong: str, allowed: Iterable[str]) -> str:
    """The tail of a sentence: the nearest allowed word, or all of them."""
    choices = sorted(allowed)
    near = difflib.get_close_matches(wrong, choices, n=1)
    if near:
        return f"did you mean '{near[0]}'?"
    return f"allowed: {', '.join(choices)}"
