"""What front ends and pipeline stages say to each other over the tensor plane: words, each with raw bytes behind it.

A word is one frozen dataclass of the closed union `Word`, MessagePack behind its length; the bytes that follow (token
ids, hidden states, keys and values) are described by it. Delivery is at most once and, on one connection, in order;
whatever is lost shows as a deadline. `generation` fences: a word of an older layout changes nothing.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from math import inf, isfinite
from typing import Literal

from medley.protocol.codec import Codec
from medley.protocol.errors import FrameError
from medley.protocol.ids import Generation, NodeId
from medley.protocol.messages import Address

STAGE = -2  # where messages of the control plane name a shard: the stage role of a machine
RequestId = int  # the front's number of one sequence

ROWS_MAX = 256  # of one micro-batch
TOKENS_MAX = 4096
HOPS_MAX = 256
LOGPROBS_MAX = 64
TOKEN_MAX = (1 << 32) - 1  # of token ids
WORD_NBYTES_MAX = 1 << 20
KNOCK_NBYTES_MAX = 1 << 20
NOWHERE = Address("", "")
_LENGTH = struct.Struct("<I")

WireType = Literal["tokens", "fp32", "bf16", "int8"]


@dataclass(frozen=True, slots=True)
class Hop:
    """Layers [first, end) at `place` in the pipeline: the machine that computes them, and where it listens."""

    place: int
    node: NodeId
    address: Address
    first: int
    end: int


@dataclass(frozen=True, slots=True)
class Row:
    """Tokens at positions [start, start + count) of a request; one is drawn at the last `samples` of them."""

    request: RequestId
    start: int
    count: int
    samples: int


@dataclass(frozen=True, slots=True)
class Opening:
    """A request's first appearance in a generation, and how its tokens are drawn (`engines.sampling.Sampling`).

    `logprobs` -1: none. With `donor_tokens` it begins as a copy of that many first positions of request `donor`.
    """

    request: RequestId
    temperature: float
    top_p: float
    top_k: int
    seed: int
    choice: int
    logprobs: int
    donor: RequestId
    donor_tokens: int


# -- front to stage: what to hold -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Load:
    """Hold layers [first, end), with the embedding where they begin the model and the head where they end it.

    What is held already stays. `model` is JSON, the same for all: `{"name", "fingerprint", "config", "weights",
    "dtype", "path"}`: `config` is the model's config.json, `weights` one of none, int8, int4, `path` where its files
    may lie on this machine too. `kv_nbytes` is the limit of all KV here.
    """

    number: int
    model: str
    first: int
    end: int
    kv_nbytes: int


@dataclass(frozen=True, slots=True)
class Unload:
    """Layers that no layout needs here any more, their KV included."""

    number: int
    first: int
    end: int


@dataclass(frozen=True, slots=True)
class Measure:
    """Time one layer and the head of this model (as in `Load`), with random weights."""

    number: int
    model: str


@dataclass(frozen=True, slots=True)
class Reach:
    """How far is it from you, who listen at `back`, to the stage at `to`: time empty posts and one of `nbytes`."""

    number: int
    to: Address
    back: Address
    nbytes: int


@dataclass(frozen=True, slots=True)
class Layout:
    """From here on passes carry this generation. `front` is where `Drawn` goes."""

    generation: Generation
    hops: tuple[Hop, ...]
    front: Address
    wire: WireType


@dataclass(frozen=True, slots=True)
class Replicate:
    """Copy KV of layers [first, end) to `node`, each request from position 0 on; an empty `address` stops it."""

    number: int
    first: int
    end: int
    node: NodeId
    address: Address


@dataclass(frozen=True, slots=True)
class AskHeld:
    """How many positions of each request layers [first, end) hold."""

    number: int
    generation: Generation
    first: int
    end: int


@dataclass(frozen=True, slots=True)
class Free:
    """Forget these requests."""

    requests: tuple[RequestId, ...]


# -- down the pipeline ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Pass:
    """A micro-batch for the hop at `place`; behind it token ids (little-endian u32) or hidden states [T, width].

    int8: after the values, one fp32 scale a token. `spent_ns`: what each hop before this one computed.
    """

    generation: Generation
    batch: int
    place: int
    rows: tuple[Row, ...]
    opens: tuple[Opening, ...]
    frees: tuple[RequestId, ...]
    wire: WireType
    width: int
    spent_ns: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Probe:
    """Are you there? Answer the front, and pass it on to the next hop."""

    generation: Generation
    number: int
    place: int


# -- stage to stage -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Shadow:
    """KV of a request's positions [start, start + count) in layers [first, end); behind it [layers, 2, G, count, D].

    Never of a draft: whoever sends it, it is what these tokens lead to. `source` listens for `Missing`.
    """

    source: Address
    request: RequestId
    first: int
    end: int
    start: int
    count: int
    groups: int
    width: int
    wire: WireType


@dataclass(frozen=True, slots=True)
class Missing:
    """A `Shadow` does not join the `held` positions that layers [first, end) of the request have on `node`: send it
    what follows those.
    """

    node: NodeId
    request: RequestId
    first: int
    end: int
    held: int


@dataclass(frozen=True, slots=True)
class Knock:
    """Answer at once, with an `Echo` to `back`; behind it are `nbytes` bytes that mean nothing."""

    number: int
    turn: int
    back: Address
    nbytes: int


@dataclass(frozen=True, slots=True)
class Echo:
    """The answer to a `Knock`: the same numbers."""

    number: int
    turn: int


@dataclass(frozen=True, slots=True)
class Ended:
    """Copies of these requests are not needed any more."""

    requests: tuple[RequestId, ...]


# -- stage to front -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Loaded:
    number: int
    first: int
    end: int
    nbytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Unloaded:
    number: int


@dataclass(frozen=True, slots=True)
class StageFailed:
    """A `Load`, `Measure` or `Unload` that came to nothing."""

    number: int
    reason: str
    memory: bool


@dataclass(frozen=True, slots=True)
class Measured:
    """Seconds of one layer and of the head: one stream, eight streams, 256 tokens; bytes that may be used here."""

    number: int
    layer_s: tuple[float, float, float]
    head_s: tuple[float, float, float]
    memory_nbytes: int


@dataclass(frozen=True, slots=True)
class Reached:
    """The answer to a `Reach`: the shortest round trip, and how fast the large post went."""

    number: int
    rtt_s: float
    bandwidth_bytes_per_s: float


@dataclass(frozen=True, slots=True)
class Position:
    request: RequestId
    held: int


@dataclass(frozen=True, slots=True)
class Held:
    number: int
    generation: Generation
    positions: tuple[Position, ...]


@dataclass(frozen=True, slots=True)
class Alternative:
    token: int
    logprob: float


@dataclass(frozen=True, slots=True)
class Draw:
    """The token for absolute position `position`, its log-probability (0 where none was asked) and the likeliest."""

    request: RequestId
    position: int
    token: int
    logprob: float
    top: tuple[Alternative, ...]


@dataclass(frozen=True, slots=True)
class Drawn:
    """What a micro-batch drew, at the last hop; empty where it had only parts of prompts."""

    generation: Generation
    batch: int
    draws: tuple[Draw, ...]
    spent_ns: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Refusal:
    """The whole micro-batch was not computed at `place`, because of this row; nothing has changed there."""

    generation: Generation
    batch: int
    place: int
    request: RequestId
    kind: Literal["gap", "room", "numbers", "bad"]
    held: int
    reason: str


@dataclass(frozen=True, slots=True)
class Alive:
    """`busy_ns`: for how long the present pass has been computed there; 0: nothing is."""

    generation: Generation
    number: int
    place: int
    busy_ns: int


@dataclass(frozen=True, slots=True)
class StageStatus:
    """Said once a second. `busy`: the part of it that was computed; `shadow_nbytes`: all that was copied away."""

    node: NodeId
    generation: Generation
    loaded: tuple[int, ...]
    pass_s: float
    busy: float
    queue: int
    requests: int
    kv_nbytes: int
    memory_nbytes: int
    shadow_nbytes: int


FromFront = Load | Unload | Measure | Reach | Layout | Replicate | AskHeld | Free
ToStage = FromFront | Pass | Probe | Shadow | Missing | Ended | Knock | Echo
ToFront = Loaded | Unloaded | StageFailed | Measured | Reached | Held | Drawn | Refusal | Alive | StageStatus
Word = ToStage | ToFront
WORDS = Codec(Word)


def pack(word: Word) -> bytes:
    """The head of a post; raw bytes, where the word speaks of any, follow it."""
    body = WORDS.encode(word)
    if len(body) > WORD_NBYTES_MAX:
        raise FrameError(f"a word of {len(body)} bytes is over the limit of {WORD_NBYTES_MAX}")
    return _LENGTH.pack(len(body)) + body


def unpack(post: memoryview) -> tuple[Word, memoryview]:
    """The word and the bytes behind it. Raises FrameError."""
    if post.nbytes < _LENGTH.size:
        raise FrameError("a post without a word")
    (length,) = _LENGTH.unpack_from(post)
    if length > min(WORD_NBYTES_MAX, post.nbytes - _LENGTH.size):
        raise FrameError(f"a word of {length} bytes in a post of {post.nbytes}")
    word: Word = WORDS.decode(post[_LENGTH.size : _LENGTH.size + length])
    if isinstance(word, Pass):
        _check(word)
    elif not _makes_sense(word):
        raise FrameError(f"a {type(word).__name__} that makes no sense")
    return word, post[_LENGTH.size + length :]


def tokens_of(word: Pass) -> int:
    return sum(row.count for row in word.rows)


def body_nbytes(word: Pass) -> int:
    """How many bytes follow this pass."""
    tokens = tokens_of(word)
    match word.wire:
        case "tokens":
            return 4 * tokens
        case "int8":
            return tokens * (word.width + 4)
        case "bf16":
            return tokens * word.width * 2
        case "fp32":
            return tokens * word.width * 4


def _makes_sense(word: Word) -> bool:
    """Bounds that every receiver may count on: spans, counts, places, and numbers to compute with."""
    match word:
        case Load() | Unload() | Replicate() | AskHeld():
            return 0 <= word.first < word.end
        case Shadow():
            return 0 <= word.first < word.end and word.start >= 0
        case Missing():
            return 0 <= word.first < word.end and word.held >= 0
        case Layout(_, hops):
            return len(hops) <= HOPS_MAX and all(0 <= hop.first < hop.end for hop in hops)
        case Probe() | Alive():
            return 0 <= word.place < HOPS_MAX
        case Reach() | Knock():
            return 0 <= word.nbytes <= KNOCK_NBYTES_MAX
        case Measured(_, layer_s, head_s, memory_nbytes):
            return all(0 < seconds < inf for seconds in (*layer_s, *head_s)) and memory_nbytes >= 0
        case Reached(_, rtt_s, bandwidth):
            return 0 <= rtt_s < inf and 0 < bandwidth < inf
        case Held(_, _, positions):
            return all(position.held >= 0 for position in positions)
        case Drawn(_, _, draws):
            return len(draws) <= TOKENS_MAX and all(map(_drawable, draws))
        case StageStatus():
            return isfinite(word.pass_s) and isfinite(word.busy)
        case _:
            return True


def _drawable(draw: Draw) -> bool:
    """Token ids travel on as u32; what a client is shown is JSON, which has no word for a number that is none."""
    told = (Alternative(draw.token, draw.logprob), *draw.top)
    return len(told) <= LOGPROBS_MAX + 1 and all(0 <= one.token <= TOKEN_MAX and isfinite(one.logprob) for one in told)


def _check(word: Pass) -> None:
    """Bounds that every receiver may count on before it allocates."""
    if not 0 < len(word.rows) <= ROWS_MAX or len(word.opens) > ROWS_MAX:
        raise FrameError(f"a micro-batch has 1 to {ROWS_MAX} rows, not {len(word.rows)}")
    if any(r.count < 1 or r.start < 0 or not 0 <= r.samples <= r.count for r in word.rows):
        raise FrameError("a row that makes no sense")
    if not all(_sensible(opening) for opening in word.opens):
        raise FrameError("a way to draw tokens that makes no sense")
    if not 0 < tokens_of(word) <= TOKENS_MAX or not 0 <= word.place < HOPS_MAX:
        raise FrameError(f"a micro-batch of {tokens_of(word)} tokens, at hop {word.place}")


def _sensible(opening: Opening) -> bool:
    """False for numbers that are none, too."""
    drawn = opening.temperature >= 0 and 0 <= opening.top_p <= 1 and opening.top_k >= 0
    return drawn and -1 <= opening.logprobs <= LOGPROBS_MAX and opening.donor_tokens >= 0
