"""One replica of the model: a row of hops, the requests it answers, the micro-batches in flight, and whether it lives.

Keeps as many batches in flight as fill the hops. A batch that is late makes a probe walk the hops; who does not answer
is suspected. After any change of the layout every hop says what it holds, and every request goes on from the least of
that. Which machines the hops are is decided elsewhere (`layouts`).
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from medley.policies.pipeline.batching import DRAFTING_ROWS, Ready, compose, groups_in_flight
from medley.policies.pipeline.drafting import MOST
from medley.policies.pipeline.patience import Patience
from medley.protocol.ids import NS_PER_S, NodeId
from medley.protocol.messages import Address
from medley.protocol.stages.events import Emit, Explain, Fail, FrontEffect, Post
from medley.protocol.stages.words import (
    Alive,
    AskHeld,
    Draw,
    Drawn,
    Free,
    Held,
    Hop,
    Layout,
    Pass,
    Probe,
    Refusal,
    Row,
    WireType,
)
from medley.roles.front.drafts import Source
from medley.roles.front.guesses import Guesses
from medley.roles.front.numbers import Numbers
from medley.roles.front.pace import Pace
from medley.roles.front.prefixes import Prefixes
from medley.roles.front.request import Request
from medley.roles.front.walks import Walk, Walks, silent

HELD_NS = NS_PER_S // 2  # a hop that does not say in this time what it holds is asked again, then suspected
HUNG_NS = 20 * NS_PER_S  # one pass that takes so long, and longer than any before it

State = Literal["down", "asking", "serving", "pausing"]


@dataclass(frozen=True, slots=True)
class Flight:
    """A row in flight, and the draft in it."""

    request: Request
    row: Row
    drafted: tuple[int, ...]
    source: Source


@dataclass(frozen=True, slots=True)
class Batch:
    rows: tuple[Flight, ...]
    tokens: int
    sent_ns: int

    def fits(self, draws: Sequence[Draw]) -> bool:
        """Whether these are the answer: one draw for each sample of each row, in order."""
        rows = [flight.row for flight in self.rows]
        ends = [(row.request, row.start + row.count - k) for row in rows for k in reversed(range(row.samples))]
        return ends == [(draw.request, draw.position) for draw in draws]


@dataclass(slots=True)
class Asking:
    """What the hops hold, as they answer. `why` and `since_ns` are for the sentence at the end."""

    number: int
    since_ns: int
    why: str
    broke_ns: int
    again: bool = False
    held: dict[int, dict[int, int]] = field(default_factory=dict)


class Pipeline:
    """`kv_tokens`: of all its requests at once."""

    def __init__(self, name: str, numbers: Numbers, front: Address, wire: WireType, kv_tokens: int) -> None:
        self.name, self._numbers, self._front, self.wire = name, numbers, front, wire
        self.kv_tokens = self._promised = kv_tokens
        self.state: State = "down"
        self.hops: tuple[Hop, ...] = ()
        self.generation = 0
        self.down_ns = 0
        self.requests: dict[int, Request] = {}
        self.queue: deque[Request] = deque()
        self.flying: dict[int, Batch] = {}
        self.patience = Patience()
        self.pace = Pace()
        self.emitted = 0
        self.recomputed = 0
        self.drafted: Counter[Source] = Counter()  # tokens
        self.accepted: Counter[Source] = Counter()  # of them
        self._prefixes = Prefixes()
        self._frees: list[int] = []
        self._last_ns = 0
        self._turn = 0
        self._plain = False  # no drafts
        self.walks = Walks()
        self._asking: Asking | None = None

    # -- requests -----------------------------------------------------------------------------------------------------

    @property
    def load(self) -> int:
        return len(self.requests) + len(self.queue)

    @property
    def remembered(self) -> tuple[int, ...]:
        """Ended requests whose KV is kept for whoever begins alike."""
        return self._prefixes.remembered

    @property
    def needed(self) -> set[int]:
        """Requests whose KV may be held: also what is to be freed, behind passes in flight that still speak of it."""
        flying = (flight.request.id for batch in self.flying.values() for flight in batch.rows)
        return {*self.requests, *self.remembered, *flying, *(self._frees if self.flying else ())}

    @property
    def reserved(self) -> int:
        return sum(r.reserved for r in self.requests.values())

    def ask(self, request: Request) -> None:
        self.queue.append(request)

    def gone(self, request: int) -> None:
        """Its KV is freed with the next pass, so behind every pass that still speaks of it."""
        if self.requests.pop(request, None) is not None:
            self._frees.append(request)
            self._prefixes.forget(request)
            self.kv_tokens = self._promised
        self.queue = deque(r for r in self.queue if r.id != request)

    def leave(self) -> list[Request]:
        """All requests, for another pipeline to go on with; this one answers none any more."""
        out = [*self.requests.values(), *self.queue]
        for request in out:
            request.rewind(0)
        self.requests.clear()
        self.queue.clear()
        self.kv_tokens = self._promised
        return out

    def _admit(self) -> None:
        while self.queue:
            request = self.queue[0]
            room = self.kv_tokens - self.reserved
            self._frees += self._prefixes.make_room(room - request.reserved)
            if request.reserved > room:
                return
            self.queue.popleft()
            self.requests[request.id] = request

    # -- batches out --------------------------------------------------------------------------------------------------

    def issue(self, guesses: Guesses, now_ns: int) -> list[FrontEffect]:
        """Micro-batches, as long as there is something to compute and not enough in flight."""
        if self.state != "serving":
            return []
        self._admit()
        out: list[FrontEffect] = [*guesses.ask(self._about_to_draw(), self.patience.latency_ns, now_ns)]
        while len(self.flying) < self._groups() and (rows := self._rows(now_ns)):
            out.append(self._send(rows, now_ns))
        if self._frees and not self.flying:
            out += self._free_now(self._nodes())
        return out

    def _groups(self) -> int:
        return groups_in_flight(len(self.hops), self.pace.alone_ns, max(self.pace.spent_ns, default=0.0))

    def _decoding(self) -> int:
        return sum(r.waiting or r.backlog == 1 for r in self.requests.values())

    def _drafts(self, decoding: int) -> bool:
        return decoding <= DRAFTING_ROWS and not self._plain

    def _about_to_draw(self) -> list[Request]:
        """Who may ask for a guess: where drafts are of use."""
        if not self._drafts(self._decoding()):
            return []
        return [r for r in self.requests.values() if not r.waiting and r.backlog == 1]

    def _rows(self, now_ns: int) -> list[Flight]:
        waiting = sorted((r for r in self.requests.values() if not r.waiting and r.backlog > 0), key=lambda r: r.turn)
        begun = [r for r in self.requests.values() if not r.fresh]
        for request in waiting:
            if request.fresh:
                request.begin_as(*self._prefixes.best(request.tokens, begun))
        decoding = self._decoding()
        drafts = self._drafts(decoding)
        ready = [Ready(r.id, r.backlog) for r in waiting if not (drafts and r.awaits_guess(now_ns))]
        counts = compose(ready, decoding, self._groups())
        return [self._flight(self.requests[request], count, drafts) for request, count in counts.items()]

    def _flight(self, request: Request, count: int, drafts: bool) -> Flight:
        """The row that reaches the last known token draws the next one, and may carry a draft behind it."""
        self._turn += 1
        request.turn = self._turn
        draws = count == request.backlog
        drafted, source = request.draft(MOST if draws and drafts else 0)
        row = Row(request.id, request.sent, count + len(drafted), 1 + len(drafted) if draws else 0)
        request.sent += row.count
        request.waiting, request.drafted = draws, bool(drafted)
        return Flight(request, row, drafted, source)

    def _send(self, rows: list[Flight], now_ns: int) -> FrontEffect:
        opens = []
        for flight in rows:
            if not flight.request.opened:
                flight.request.opened = True
                opens.append(flight.request.opening())
        frees, self._frees = tuple(self._frees), []
        tokens = tuple(t for f in rows for t in _tokens(f))
        number = self._numbers.next()
        self.flying[number] = Batch(tuple(rows), len(tokens), now_ns)
        word = Pass(
            self.generation, number, 0, tuple(f.row for f in rows), tuple(opens), frees, "tokens", 0, ()
        )  # fmt: skip
        return Post(self.hops[0].address, word, tokens)

    def _nodes(self) -> list[Address]:
        return list(dict.fromkeys(hop.address for hop in self.hops))

    def _free_now(self, where: Iterable[Address]) -> list[FrontEffect]:
        frees, self._frees = tuple(self._frees), []
        return [Post(address, Free(frees)) for address in where] if frees else []

    # -- and back -----------------------------------------------------------------------------------------------------

    def drawn(self, word: Drawn, now_ns: int) -> list[FrontEffect]:
        batch = self.flying.get(word.batch) if word.generation == self.generation else None
        if batch is None or not batch.fits(word.draws):
            return []
        del self.flying[word.batch]
        self.patience.saw(batch.tokens, now_ns - max(batch.sent_ns, self._last_ns), now_ns - batch.sent_ns)
        self._last_ns = now_ns
        if batch.tokens <= len(batch.rows) * 2:
            self.pace.saw(word.spent_ns, batch.tokens, now_ns - batch.sent_ns)
        out: list[FrontEffect] = []
        place = 0
        for flight in batch.rows:
            draws = word.draws[place : place + flight.row.samples]
            place += flight.row.samples
            out += self._taken(flight, draws)
        return out

    def _taken(self, flight: Flight, draws: tuple[Draw, ...]) -> list[FrontEffect]:
        request = flight.request
        if not draws or self.requests.get(request.id) is not request:
            return []
        taken, finish = request.take(draws, flight.drafted, flight.source)
        self.emitted += len(taken)
        if flight.drafted:
            self.drafted[flight.source] += len(flight.drafted)
            self.accepted[flight.source] += max(0, len(taken) - 1)
        if finish:
            del self.requests[request.id]
            self.kv_tokens = self._promised
            self._frees += self._prefixes.remember(request)
        return [Emit(request.id, taken, finish)] if taken else []

    def refused(self, word: Refusal, now_ns: int) -> list[FrontEffect]:
        """A hop did not compute a batch. Whatever else was in it, and what follows it, is sent again."""
        if word.generation != self.generation or self.state == "down":
            return []
        out: list[FrontEffect] = []
        request = self.requests.get(word.request)
        if word.kind == "room" and len(self.requests) > 1:
            self._park()
        elif word.kind != "gap" and request is not None:
            self.gone(word.request)
            out.append(Fail(word.request, word.reason))
        return [*out, *self.install(self.hops, f"hop {word.place} refused a batch: {word.reason}", now_ns, now_ns)]

    def _park(self) -> None:
        """The newest request waits until another has ended; its KV is free meanwhile."""
        newest = max(self.requests.values(), key=lambda r: r.asked_ns)
        del self.requests[newest.id]
        self.kv_tokens = self.reserved  # so much there is room for, whatever the layout promised
        newest.rewind(0)
        self._frees.append(newest.id)
        self.queue.appendleft(newest)

    # -- layouts ------------------------------------------------------------------------------------------------------

    def broken(self, now_ns: int) -> None:
        """A machine of it is gone: nothing is sent until there is a new layout."""
        self.state = "down"
        self.down_ns = self.down_ns or now_ns
        self.flying.clear()
        self._frees += self._prefixes.clear()
        self._asking = None
        self.walks.stop()

    def install(self, hops: tuple[Hop, ...], why: str, since_ns: int, now_ns: int) -> list[FrontEffect]:
        """From now on these hops, in a new generation; requests go on once every hop has said what it holds."""
        self.generation = self._numbers.next()
        old, self.hops, self.state = self._nodes(), hops, "asking"
        self.flying.clear()
        self.pace = Pace()
        self.down_ns, self._plain = 0, False
        self.walks.stop()
        self._frees += self._prefixes.clear()
        self._asking = Asking(self._numbers.next(), now_ns, why, since_ns)
        asks = self._ask_held()
        return [*asks, *self._free_now(dict.fromkeys([*old, *self._nodes()]))]

    def _ask_held(self) -> list[FrontEffect]:
        assert self._asking is not None
        missing = [hop for hop in self.hops if hop.place not in self._asking.held]
        number = self._asking.number
        layout = Layout(self.generation, self.hops, self._front, self.wire)
        out: list[FrontEffect] = [Post(address, layout) for address in dict.fromkeys(h.address for h in missing)]
        return out + [Post(h.address, AskHeld(number + h.place, self.generation, h.first, h.end)) for h in missing]

    def held(self, word: Held, now_ns: int) -> list[FrontEffect]:
        asking = self._asking
        if asking is None or word.generation != self.generation:
            return []
        place = word.number - asking.number
        if not 0 <= place < len(self.hops):
            return []
        asking.held[place] = {p.request: p.held for p in word.positions}
        return self._resume(asking, now_ns) if len(asking.held) == len(self.hops) else []

    def _resume(self, asking: Asking, now_ns: int) -> list[FrontEffect]:
        self._asking, self.state, self._last_ns = None, "serving", now_ns
        again, whole = 0, 0
        for request in self.requests.values():
            started = request.sent
            request.rewind(min(held.get(request.id, 0) for held in asking.held.values()))
            again += max(0, min(started, len(request.tokens) - 1) - request.sent)
            whole += len(request.tokens) - 1
        self.recomputed += again
        if not self.requests:
            return [Explain(self.name, f"{asking.why}; generation {self.generation} begins")]
        way = _way(again, whole)
        seconds = (now_ns - asking.broke_ns) / NS_PER_S
        sentence = f"{asking.why}; {len(self.requests)} requests go on after {seconds:.2f} s, {way}"
        return [Explain(self.name, sentence)]

    def pause(self) -> None:
        """Send nothing more, so that a layout can change between two tokens. Copies hold no drafts: until each request
        has had a row without one, it only drafts no more, and this must be said again.
        """
        self._plain = True
        if self.state == "serving" and not any(r.drafted for r in self.requests.values()):
            self.state = "pausing"

    def go_on(self) -> None:
        self._plain = False
        if self.state == "pausing":
            self.state = "serving"

    # -- is anybody there? --------------------------------------------------------------------------------------------

    def tick(self, now_ns: int) -> tuple[list[FrontEffect], tuple[NodeId, str] | None]:
        """What a while without news leads to, and whom to suspect."""
        if self._asking is not None:
            return self._still_asking(self._asking, now_ns)
        if not self.flying or self.state == "down":
            self.walks.stop()
            return [], None
        oldest = next(iter(self.flying.values()))
        late = now_ns - max(oldest.sent_ns, self._last_ns) > self.patience.limit_ns(oldest.tokens)
        if late and (walk := self.walks.over(now_ns)) is not None:
            return self._walked(walk, now_ns)
        if not self.walks.wanted(late, len(self.hops), now_ns):
            return [], None
        number = self._numbers.next()
        self.walks.begin(number, late, now_ns)
        return [Post(self.hops[0].address, Probe(self.generation, number, 0))], None

    def _still_asking(self, asking: Asking, now_ns: int) -> tuple[list[FrontEffect], tuple[NodeId, str] | None]:
        if now_ns - asking.since_ns < HELD_NS:
            return [], None
        if not asking.again:
            asking.again, asking.since_ns = True, now_ns
            return self._ask_held(), None
        if now_ns - asking.since_ns < 20 * HELD_NS and self._long_pass_likely():
            return [], None
        silent = next(hop for hop in self.hops if hop.place not in asking.held)
        return [], (silent.node, "it does not say what it holds")

    def _long_pass_likely(self) -> bool:
        """A stage answers between two passes, and a part of a prompt may take long there."""
        return self.patience.limit_ns(256) > HELD_NS

    def alive(self, word: Alive, now_ns: int) -> None:
        if word.generation == self.generation and 0 <= word.place < len(self.hops):
            self.walks.answered(word.number, word.place, word.busy_ns, now_ns)

    def _walked(self, walk: Walk, now_ns: int) -> tuple[list[FrontEffect], tuple[NodeId, str] | None]:
        """A batch is late, and everybody had time to say that he is there."""
        missing = silent(walk, self.hops)
        if missing is not None:
            return [], (missing.node, "it does not answer")
        self.patience.extend()
        busiest = max(walk.alive, key=lambda place: walk.alive[place])
        busy_ns = walk.alive[busiest]
        if busy_ns > max(HUNG_NS, self.patience.limit_ns(256)):
            return [], (self.hops[busiest].node, f"it has computed one batch for {busy_ns / NS_PER_S:.0f} s")
        if busy_ns:
            self._last_ns = now_ns
            return [], None
        return self.install(self.hops, "a batch was lost on its way", now_ns, now_ns), None


def _tokens(flight: Flight) -> list[int]:
    row = flight.row
    known = flight.request.tokens[row.start : row.start + row.count]
    return [*known, *flight.drafted]


def _way(again: int, whole: int) -> str:
    if not again:
        return "nothing is computed again"
    return f"{again} of {whole} positions are computed again"
