"""The front's conversation with its draft model: who is owed a guess, and what guessing takes.

One for all pipelines, since there is one draft model. A guess that is never used costs nobody anything but its time.
"""

from __future__ import annotations

from collections.abc import Iterable

from medley.policies.pipeline.drafting import MOST
from medley.policies.pipeline.guessing import GuessPace
from medley.protocol.stages.events import Explain, Guess, Guessed, GuessesEnd
from medley.protocol.stages.words import RequestId
from medley.roles.front.request import Request

SUBJECT = "draft model"


class Guesses:
    """`on`: there is a draft model, and it has not failed."""

    def __init__(self, on: bool) -> None:
        self.on = on
        self.pace = GuessPace()
        self._owed: dict[RequestId, Request] = {}

    def ask(self, deciding: Iterable[Request], traversal_ns: float, now_ns: int) -> list[Guess]:
        """For those that are about to draw, where it pays; one guess is made after the other."""
        out = []
        for request in deciding if self.on else ():
            token_ns = self.pace.token_ns * (1 + len(self._owed))
            count = request.guess_wanted(MOST, token_ns, traversal_ns)
            if count:
                request.await_guess(traversal_ns, now_ns)
                self._owed[request.id] = request
                out.append(Guess(request.opening(), tuple(request.tokens), count))
        return out

    def heard(self, event: Guessed) -> None:
        self.pace.saw(len(event.tokens), event.spent_ns)
        request = self._owed.pop(event.request, None)
        if request is not None:
            request.guessed(event.position, event.tokens)

    def end(self, event: GuessesEnd) -> list[Explain]:
        """Whoever waits goes on without."""
        if not self.on:
            return []
        self.on = False
        for request in self._owed.values():
            request.guessed(0, ())
        self._owed.clear()
        return [Explain(SUBJECT, f"it failed: {event.reason}; drafts come from the text alone")]
