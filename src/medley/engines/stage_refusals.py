"""Why a stage's engine did not do what was asked of it. `request`: whose row, or 0; `held`: positions it may go on at.

After any of these nothing has changed, but for `NotFinite`: its micro-batch was computed, and its requests are back at
the start of their rows.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from medley.protocol.errors import MedleyError

Kind = Literal["gap", "room", "numbers", "bad"]


class StageRefusal(MedleyError):
    """Any of them."""

    kind: ClassVar[Kind]

    def __init__(self, reason: str, request: int = 0, held: int = 0) -> None:
        super().__init__(reason)
        self.request, self.held = request, held


class Refused(StageRefusal):
    """What cannot be: an unknown request or layer, a row twice, sizes that do not agree."""

    kind = "bad"


class Gap(StageRefusal):
    """Positions beyond what these layers hold of the request."""

    kind = "gap"


class NoRoom(StageRefusal):
    """The limit of KV bytes would be passed."""

    kind = "room"


class NotFinite(StageRefusal):
    """The logits of this request's row are not numbers."""

    kind = "numbers"
