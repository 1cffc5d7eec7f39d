"""One sequence on its way: its tokens, which of them the pipeline has, and what a draw does to it.

The tokens here are the truth. `sent` counts positions whose rows were sent in the present generation; a recovery sets
it back, and everything from there on is computed again and comes out the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from medley.protocol.stages.events import Asked
from medley.protocol.stages.words import Draw, Opening
from medley.roles.front.drafts import Drafts, Source

BLOCK = 256  # tokens by which KV grows on a stage

Finish = Literal["", "stop", "length"]


@dataclass(slots=True, eq=False)
class Request:
    """`waiting`: a row of it that draws is in flight. `drafted`: the last one had a draft.

    `donor`: whose first `donor_tokens` positions it begins with.
    """

    asked: Asked
    asked_ns: int
    tokens: list[int] = field(default_factory=list)
    sent: int = 0
    opened: bool = False
    waiting: bool = False
    drafted: bool = False
    donor: int = 0
    donor_tokens: int = 0
    turn: int = 0
    drafts: Drafts | None = None

    def __post_init__(self) -> None:
        self.tokens = list(self.asked.prompt)
        self.drafts = Drafts(self.tokens) if self.asked.draft else None

    @property
    def id(self) -> int:
        return self.asked.request

    @property
    def generated(self) -> int:
        return len(self.tokens) - len(self.asked.prompt)

    @property
    def backlog(self) -> int:
        """Positions that are known and not sent."""
        return len(self.tokens) - self.sent

    @property
    def reserved(self) -> int:
        """Tokens of KV that it can reach at most, in whole blocks."""
        return -(-(len(self.asked.prompt) + self.asked.limit) // BLOCK) * BLOCK

    @property
    def fresh(self) -> bool:
        """No row of it was sent in this generation, and nothing of it is held."""
        return not self.opened and self.sent == self.donor_tokens

    def begin_as(self, donor: int, tokens: int) -> None:
        """Its first positions are copied from another request's."""
        self.donor, self.donor_tokens, self.sent = donor, tokens, tokens

    def opening(self) -> Opening:
        asked = self.asked
        return Opening(
            self.id, asked.temperature, asked.top_p, asked.top_k, asked.seed, asked.choice, asked.logprobs,
            self.donor, self.donor_tokens,
        )  # fmt: skip

    def draft(self, most: int) -> tuple[tuple[int, ...], Source]:
        """Tokens that may follow, and whose guess they are; never more than could still be used."""
        if self.drafts is None:
            return (), "text"
        return self.drafts.propose(len(self.tokens), self._usable(most))

    def guess_wanted(self, most: int, token_ns: float, traversal_ns: float) -> int:
        """Tokens to ask the draft model for."""
        if self.drafts is None:
            return 0
        return self.drafts.wanted(len(self.tokens), self._usable(most), token_ns, traversal_ns)

    def await_guess(self, traversal_ns: float, now_ns: int) -> None:
        if self.drafts is not None:
            self.drafts.ask(len(self.tokens), traversal_ns, now_ns)

    def awaits_guess(self, now_ns: int) -> bool:
        return self.drafts is not None and self.drafts.awaits(len(self.tokens), now_ns)

    def guessed(self, position: int, tokens: tuple[int, ...]) -> None:
        if self.drafts is not None:
            self.drafts.answered(position, tokens)

    def _usable(self, most: int) -> int:
        return min(most, self.asked.limit - self.generated - 1)

    def rewind(self, held: int) -> None:
        """A new generation: so many positions are there, the rest is computed again: one at least draws a token."""
        self.sent = min(held, len(self.tokens) - 1)
        self.opened = self.waiting = self.drafted = False
        self.donor = self.donor_tokens = 0

    def take(
        self, draws: Sequence[Draw], drafted: tuple[int, ...], source: Source = "text"
    ) -> tuple[tuple[Draw, ...], Finish]:
        """The tokens that these draws add: up to the first one that the draft had wrong, the end, or the limit."""
        self.waiting = False
        taken: list[Draw] = []
        finish: Finish = ""
        for n, draw in enumerate(draws):
            if draw.position != len(self.tokens):
                break
            self._append(draw.token)
            taken.append(draw)
            finish = self._finish(draw.token)
            if finish or n >= len(drafted) or drafted[n] != draw.token:
                break
        self.sent = min(self.sent, len(self.tokens) - 1)
        if drafted and self.drafts is not None:
            self.drafts.judged(source, len(drafted), max(0, len(taken) - 1))
        return tuple(taken), finish

    def _append(self, token: int) -> None:
        self.tokens.append(token)
        if self.drafts is not None:
            self.drafts.extend(token)

    def _finish(self, token: int) -> Finish:
        if token in self.asked.ends:
            return "stop"
        return "length" if self.generated >= self.asked.limit else ""
