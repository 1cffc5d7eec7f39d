"""The thread of a stage that computes: takes what arrived to the role, and does at once what the role wants done.

Promises: whatever has arrived is heard between two passes, so a new layout never waits for passes of an old one; what a
hop adds to a token's way is this thread's time and two wake-ups. Leaves loading to another thread, and answering probes
to the plane's.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from medley.engines.memory import is_out_of_memory
from medley.engines.stage import StageEngine
from medley.engines.stage_refusals import Gap, Refused, StageRefusal
from medley.engines.stage_wire import decode_hidden, decode_kv, decode_tokens, encode_hidden, sampling_of
from medley.observe.logs import logger
from medley.protocol.ids import NS_PER_S
from medley.protocol.stages import events as serving
from medley.protocol.stages.events import (
    Compute,
    Computed,
    Do,
    Explain,
    Export,
    Forget,
    Halt,
    Import,
    Post,
    Reject,
    Said,
    StageEffect,
    StageEvent,
    Unjoined,
)
from medley.protocol.stages.words import AskHeld, Held, Load, Measure, Pass, Position, RequestId, Unload, tokens_of
from medley.roles.stage import Stage
from medley.runtimes.children.stage_copying import Copying
from medley.runtimes.children.stage_inbox import Inbox, Item, Sender
from medley.runtimes.children.stage_loading import Loader
from medley.runtimes.children.stage_meter import Meter
from medley.runtimes.clock import SystemClock

HEARD_MOST = 64  # between two passes
RETRY_S = 0.005  # until a peer that took no more of a copy is asked again
PIECES = 4  # of copies, after each pass


class Computer:
    """`run` on a thread of its own. `factor`: how many times slower than it can it is to compute."""

    def __init__(self, stage: Stage, inbox: Inbox, send: Sender, loader: Loader, meter: Meter, factor: float) -> None:
        self._stage, self._inbox, self._send, self._loader = stage, inbox, send, loader
        self._meter, self._factor = meter, factor
        self._clock = SystemClock()
        self._log = logger("stage", node=stage.node)
        self._next: Compute | None = None
        self._nothing = threading.Event()
        self.copying = Copying(send)

    def run(self) -> None:
        while True:
            self._hear_all()
            if self._next is not None:
                effect, self._next = self._next, None
                self._handle(self._computed(effect))
            sent = self._copy()
            self._note()
            if self._next is None:
                self._hear(self._inbox.take(0 if sent else RETRY_S if self.copying.waiting else None))

    def _copy(self) -> bool:
        """A little; whether there may be more to do at once."""
        engine = self._loader.engine
        return engine is not None and all(self.copying.step(engine) for _ in range(PIECES))

    def _hear_all(self) -> None:
        for _ in range(HEARD_MOST):
            item = self._inbox.take(0)
            if item is None:
                return
            self._hear(item)

    def _hear(self, item: Item | None) -> None:
        if callable(item):
            item()
        elif item is not None:
            self._handle(item)

    def _handle(self, event: StageEvent) -> None:
        """The event, and what its effects lead to; a computation waits until everything that arrived was heard."""
        waiting = deque(self._stage.handle(event, self._clock.now_ns()))
        while waiting:
            effect = waiting.popleft()
            try:
                answer = self._execute(effect)
            except StageRefusal as refusal:  # layers that the model does not have, a wire that carries no numbers
                self._refused(type(effect).__name__, str(refusal))
            else:
                if answer is not None:
                    waiting += self._stage.handle(answer, self._clock.now_ns())

    def _execute(self, effect: StageEffect) -> StageEvent | None:
        match effect:
            case Post():
                self._post(effect)
            case Compute():
                self._next = effect
            case Export():
                if self._loader.engine is not None:
                    self.copying.wanted(effect, self._loader.engine)
            case Halt():
                self.copying.halted(effect)
            case Import():
                return self._import(effect)
            case Forget(requests):
                self._free(requests)
            case Do(AskHeld() as word):
                return Said(self._held(word))
            case Do(Load() | Unload() | Measure() as word):
                self._loader.ask(word)
            case Reject(peer, reason):
                self._refused(peer, reason)
            case Explain(subject, text):
                self._log.debug("because", subject=subject, text=text)
        return None

    def _refused(self, what: str, reason: str) -> None:
        self._meter.counters["refused"] += 1
        self._log.debug("refused", what=what, reason=reason)

    # -- a pass -------------------------------------------------------------------------------------------------------

    def _computed(self, effect: Compute) -> Computed:
        word = effect.word
        if word.generation != self._stage.layout.generation:  # nobody waits for it any more
            self._free(word.frees)
            return Computed(word)
        began_ns = self._clock.now_ns()
        self._meter.begin(began_ns)
        try:
            return self._passed(effect)
        except StageRefusal as refusal:
            request = refusal.request or word.rows[0].request
            return Computed(word, refused=serving.Refused(request, refusal.kind, refusal.held, str(refusal)))
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            reason = f"memory ran out: {error}"
            return Computed(word, refused=serving.Refused(word.rows[0].request, "room", 0, reason))
        finally:
            self._straggle(began_ns)
            self._meter.end(self._clock.now_ns())

    def _passed(self, effect: Compute) -> Computed:
        """A donor is freed only when it has given."""
        word, engine = effect.word, self._engine
        donors = {opening.donor for opening in word.opens if opening.donor_tokens}
        self._free(request for request in word.frees if request not in donors)
        for opening in word.opens:
            engine.open(opening.request, sampling_of(opening), opening.donor, opening.donor_tokens)
        self._free(request for request in word.frees if request in donors)
        out = engine.forward(word.rows, self._given(effect, engine), effect.first, effect.end)
        return Computed(word, draws=tuple(out)) if isinstance(out, list) else Computed(word, hidden=out)

    def _given(self, effect: Compute, engine: StageEngine) -> Any:
        """A hop before this one on the same machine gave a tensor; all others gave bytes."""
        word, body = effect.word, effect.body
        if not isinstance(body, memoryview):
            return body
        if word.wire == "tokens":
            return decode_tokens(body, tokens_of(word))
        return decode_hidden(body, tokens_of(word), word.width, word.wire, engine.dtype)

    def _straggle(self, began_ns: int) -> None:
        """As a machine that is so many times slower."""
        if self._factor > 1:
            took_s = (self._clock.now_ns() - began_ns) / NS_PER_S
            self._nothing.wait(took_s * (self._factor - 1))

    # -- beside the passes --------------------------------------------------------------------------------------------

    @property
    def _engine(self) -> StageEngine:
        if self._loader.engine is None:
            raise Refused("nothing is loaded here")
        return self._loader.engine

    def _post(self, effect: Post) -> None:
        word, body = effect.word, effect.body
        if body is None:
            self._send.post(effect.to, word)
        elif isinstance(word, Pass):
            width = int(body.shape[1])
            self._send.post(effect.to, replace(word, width=width), tuple(encode_hidden(body, word.wire)))

    def _free(self, requests: Iterable[RequestId]) -> None:
        engine, gone = self._loader.engine, frozenset(requests)
        self.copying.forgotten(gone)
        for request in gone if engine is not None else ():
            engine.free(request)  # type: ignore[union-attr]

    def _import(self, effect: Import) -> Unjoined | None:
        word = effect.word
        try:
            self._engine.import_kv(word.request, range(word.first, word.end), word.start, decode_kv(word, effect.body))
        except Gap as gap:
            return Unjoined(word, gap.held)
        return None

    def _held(self, word: AskHeld) -> Held:
        engine = self._loader.engine
        held: dict[RequestId, int] = {}
        if engine is not None and 0 <= word.first < word.end <= engine.layers:
            held = engine.held(word.first, word.end)
        positions = tuple(Position(request, count) for request, count in held.items())
        return Held(word.number, word.generation, positions)

    def _note(self) -> None:
        """For the status; and whether a measurement would disturb anybody."""
        meter, engine = self._meter, self._loader.engine
        meter.queue, meter.requests = self._stage.queue, self._stage.requests
        meter.kv_nbytes = 0 if engine is None else engine.kv_nbytes
        meter.shadow_nbytes = self.copying.nbytes
        if meter.requests:
            self._loader.quiet.clear()
        else:
            self._loader.quiet.set()
