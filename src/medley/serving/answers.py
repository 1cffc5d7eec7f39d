"""Requests of the API as sequences of a front, and a front's tokens as pieces of text for whoever asked.

Belongs to the front's event loop; a ticket's owner lives on another one and is told through `Ticket.deliver`.
"""

from __future__ import annotations

from dataclasses import dataclass

from medley.engines.sampling import Sampling, TokenLogprob
from medley.engines.wording import Piece, Request, Telling, Wording
from medley.protocol.errors import MedleyError
from medley.protocol.stages.events import Asked, Emit, Fail, Gone
from medley.protocol.stages.words import Draw
from medley.serving.engine import Ticket, Unanswered


@dataclass(slots=True)
class Open:
    """One sequence under way: whose it is, which choice, and what of it is still to be shown."""

    ticket: Ticket
    choice: int
    telling: Telling
    logprobs: bool


class Answers:
    """`begin` gives a front's events; `emitted` and `failed` take its effects."""

    def __init__(self, words: Wording, draft: bool) -> None:
        self._words, self._draft = words, draft
        self._open: dict[int, Open] = {}
        self._last = 0

    def __len__(self) -> int:
        return len(self._open)

    def begin(self, ticket: Ticket) -> list[Asked]:
        """Every sequence of a ticket; one that has no room for a token ends at once."""
        out = []
        for choice, request in enumerate(ticket.requests):
            room = self._words.context - len(request.prompt)
            wanted = request.sampling.max_tokens
            limit = room if wanted is None else min(room, wanted)
            if limit < 1:
                ticket.deliver((choice, Piece(finish="length")))
                continue
            self._last += 1
            telling = Telling(self._words, request.sampling, limit)
            self._open[self._last] = Open(ticket, choice, telling, request.sampling.logprobs is not None)
            out.append(self._asked(self._last, request, limit))
        return out

    def _asked(self, number: int, request: Request, limit: int) -> Asked:
        how: Sampling = request.sampling
        return Asked(
            number,
            request.prompt,
            limit,
            self._words.ends,
            how.temperature,
            how.top_p,
            how.top_k,
            how.seed,
            how.choice,
            -1 if how.logprobs is None else how.logprobs,
            self._draft,
        )

    def emitted(self, effect: Emit) -> list[Gone]:
        """Shows the tokens. What a stop string ends, the front does not know of: it is told."""
        sequence = self._open.get(effect.request)
        if sequence is None:
            return []
        for draw in effect.draws:
            piece = sequence.telling.take(draw.token, _told(draw) if sequence.logprobs else None)
            if piece.text or piece.tokens or piece.finish:
                sequence.ticket.deliver((sequence.choice, piece))
            if piece.finish:
                del self._open[effect.request]
                return [] if effect.finish else [Gone(effect.request)]
        return []

    def failed(self, effect: Fail) -> list[Gone]:
        """One sequence of a ticket that fails ends the others, too."""
        sequence = self._open.pop(effect.request, None)
        if sequence is None:
            return []
        sequence.ticket.deliver(Unanswered(effect.reason))
        return self._end(sequence.ticket)

    def cancelled(self) -> list[Gone]:
        """Whose client has left."""
        gone = {one.ticket for one in self._open.values() if one.ticket.cancelled.is_set()}
        return [event for ticket in gone for event in self._end(ticket)]

    def close(self, reason: MedleyError) -> None:
        for ticket in {one.ticket for one in self._open.values()}:
            ticket.deliver(reason)
        self._open.clear()

    def _end(self, ticket: Ticket) -> list[Gone]:
        numbers = [number for number, one in self._open.items() if one.ticket is ticket]
        for number in numbers:
            del self._open[number]
        return [Gone(number) for number in numbers]


def _told(draw: Draw) -> TokenLogprob:
    return TokenLogprob(draw.token, draw.logprob, tuple((one.token, one.logprob) for one in draw.top))
