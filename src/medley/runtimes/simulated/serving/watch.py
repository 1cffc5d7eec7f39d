"""What the checkers see of a serving: each step of a role with what came of it, and each pass before it is computed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from medley.protocol.stages.events import Compute, FrontEffect, FrontEvent, StageEffect, StageEvent

if TYPE_CHECKING:
    from medley.runtimes.simulated.serving.stage import StageProcess
    from medley.runtimes.simulated.serving.world import ServingWorld


class ServingWatcher:
    """Everything that can be watched; each method does nothing until it is overridden."""

    def front(self, world: ServingWorld, event: FrontEvent, effects: Sequence[FrontEffect]) -> None:
        """The front handled an event."""

    def stage(
        self, world: ServingWorld, process: StageProcess, event: StageEvent, effects: Sequence[StageEffect]
    ) -> None:
        """A stage handled an event, and its host carried the effects out."""

    def compute(self, world: ServingWorld, process: StageProcess, effect: Compute) -> None:
        """A stage's engine is about to compute this."""
