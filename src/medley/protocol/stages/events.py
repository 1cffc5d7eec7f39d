"""Events and effects of the two roles that serve a model: `Stage` on each machine, `Front` beside the HTTP server.

Closed unions, as for the other roles. A body is opaque to a role: bytes, a tensor, or whatever a simulation puts in its
place; a role only passes it on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from medley.protocol.ids import NodeId
from medley.protocol.messages import Address
from medley.protocol.stages.words import (
    AskHeld,
    Draw,
    Load,
    Measure,
    Opening,
    Pass,
    RequestId,
    Shadow,
    ToFront,
    ToStage,
    Unload,
    Word,
)

Body = Any

# -- both -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Post:
    """Send this word, and the bytes behind it, one way. A front's `body` of a `Pass` is a tuple of token ids."""

    to: Address
    word: Word
    body: Body = None


@dataclass(frozen=True, slots=True)
class Explain:
    """A decision and its sentence."""

    subject: str
    text: str


@dataclass(frozen=True, slots=True)
class Reject:
    """A peer broke the contract; nothing changed."""

    peer: str
    reason: str


@dataclass(frozen=True, slots=True)
class Tick:
    """Time went by."""


# -- a stage --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Arrived:
    word: ToStage
    body: Body = None


@dataclass(frozen=True, slots=True)
class Refused:
    """Why the engine did not compute; nothing has changed there."""

    request: RequestId
    kind: Literal["gap", "room", "numbers", "bad"]
    held: int
    reason: str


@dataclass(frozen=True, slots=True)
class Computed:
    """What became of a `Compute`: hidden states for the next hop, or tokens, or a refusal."""

    word: Pass
    hidden: Body = None
    draws: tuple[Draw, ...] = ()
    refused: Refused | None = None


@dataclass(frozen=True, slots=True)
class Said:
    """Something for the front that the engine found out by itself: a load, a measurement, what is held."""

    word: ToFront


@dataclass(frozen=True, slots=True)
class Met:
    """Where the front listens, by word of the coordinator."""

    front: Address


@dataclass(frozen=True, slots=True)
class Unjoined:
    """What an `Import` brought begins beyond the `held` positions that are here; nothing has changed."""

    word: Shadow
    held: int


@dataclass(frozen=True, slots=True)
class Compute:
    """Open what the pass opens, free what it frees, run layers [first, end) over its rows. The answer is `Computed`."""

    word: Pass
    first: int
    end: int
    body: Body


@dataclass(frozen=True, slots=True)
class Export:
    """Send KV of a request's positions [start, start + count) in layers [first, end) to a peer; count -1: all held now.

    May be done bit by bit; a later one for the same request says where it ends now, and `Forget` that it is not wanted.
    """

    request: RequestId
    first: int
    end: int
    start: int
    count: int
    to: Address


@dataclass(frozen=True, slots=True)
class Halt:
    """What is still to be sent of layers [first, end) to that peer is not wanted any more."""

    first: int
    end: int
    to: Address


@dataclass(frozen=True, slots=True)
class Import:
    """Take this KV, or answer `Unjoined`."""

    word: Shadow
    body: Body


@dataclass(frozen=True, slots=True)
class Forget:
    """Free these requests."""

    requests: tuple[RequestId, ...]


@dataclass(frozen=True, slots=True)
class Do:
    """Work that ends in a `Said`: loading (beside computing), unloading, measuring, counting what is held."""

    word: Load | Unload | Measure | AskHeld


StageEvent = Arrived | Computed | Unjoined | Said | Met | Tick
StageEffect = Post | Compute | Export | Halt | Import | Forget | Do | Explain | Reject

# -- a front --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Asked:
    """One sequence to continue, as `engines.sampling.Sampling` draws it; `logprobs` -1: none.

    `limit`: tokens at most (prompt and they fit the context); `ends`: tokens that end it; `draft`: speculation allowed.
    """

    request: RequestId
    prompt: tuple[int, ...]
    limit: int
    ends: frozenset[int]
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    choice: int = 0
    logprobs: int = -1
    draft: bool = True


@dataclass(frozen=True, slots=True)
class Gone:
    """Nobody listens to this request any more."""

    request: RequestId


@dataclass(frozen=True, slots=True)
class Heard:
    """A stage said this. `node`: whose key it came with."""

    node: NodeId
    word: ToFront


@dataclass(frozen=True, slots=True)
class MachineUp:
    """Its engine listens and everybody admits its key; a known machine with a new address starts anew."""

    node: NodeId
    address: Address


@dataclass(frozen=True, slots=True)
class MachineDown:
    node: NodeId
    reason: str


@dataclass(frozen=True, slots=True)
class Drain:
    """A person wants this machine free: its layers and their KV move away first."""

    node: NodeId


@dataclass(frozen=True, slots=True)
class Guessed:
    """The answer to a `Guess`: tokens that may follow the first `position` ones; none where there is nothing to say.

    `spent_ns`: what they took; 0 where much had to be read first, so that it says nothing about the next time.
    """

    request: RequestId
    position: int
    tokens: tuple[int, ...]
    spent_ns: int = 0


@dataclass(frozen=True, slots=True)
class GuessesEnd:
    """The draft model failed: what was asked for is not answered any more, and nothing else will be."""

    reason: str


@dataclass(frozen=True, slots=True)
class Emit:
    """Tokens for the client, each once, in order. `finish` ends the request: an end token, or the limit."""

    request: RequestId
    draws: tuple[Draw, ...]
    finish: Literal["", "stop", "length"]


@dataclass(frozen=True, slots=True)
class Fail:
    """The request ends without an answer."""

    request: RequestId
    reason: str


@dataclass(frozen=True, slots=True)
class Suspect:
    """This machine's engine does not do its work: have it ended and started again."""

    node: NodeId
    reason: str


@dataclass(frozen=True, slots=True)
class Guess:
    """Have the draft model continue these tokens by so many, beside whatever else goes on: the answer is `Guessed`.

    `opening`: how the request draws, so that a guess may use the same number at each position.
    """

    opening: Opening
    tokens: tuple[int, ...]
    count: int


FrontEvent = Asked | Gone | Heard | Guessed | GuessesEnd | MachineUp | MachineDown | Drain | Tick
FrontEffect = Post | Emit | Fail | Suspect | Guess | Explain | Reject
