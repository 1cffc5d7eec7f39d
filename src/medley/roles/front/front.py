"""The front of a served model: gives requests to pipelines, hears stages, and acts on whoever is gone.

Pure: `handle(event, now_ns) -> effects`. Each token reaches a client once and in order, whatever dies; a request ends
with an answer, a reason, or because its client left. Leaves to its host: HTTP, text, sockets, the coordinator.
"""

from __future__ import annotations

from collections import deque
from typing import assert_never

from medley.protocol.ids import NS_PER_S, NodeId
from medley.protocol.stages.events import (
    Asked,
    Drain,
    Explain,
    Fail,
    FrontEffect,
    FrontEvent,
    Gone,
    Guessed,
    GuessesEnd,
    Heard,
    MachineDown,
    MachineUp,
    Reject,
    Suspect,
    Tick,
)
from medley.protocol.stages.words import (
    Alive,
    Drawn,
    Held,
    Loaded,
    Measured,
    Reached,
    Refusal,
    StageFailed,
    StageStatus,
    ToFront,
    Unloaded,
)
from medley.roles.front.audit import Audit
from medley.roles.front.guesses import Guesses
from medley.roles.front.layouts import Layouts
from medley.roles.front.numbers import Numbers
from medley.roles.front.pipeline import Pipeline
from medley.roles.front.planning import FrontOptions
from medley.roles.front.request import Request

PATIENCE_NS = 300 * NS_PER_S  # without a pipeline, before requests are given up


class Front:
    """Feed it events, execute its effects. `layouts` and `pipelines` may be read by whoever shows them."""

    def __init__(self, options: FrontOptions) -> None:
        self.options = options
        numbers = Numbers()
        self.layouts = Layouts(options, numbers)
        self._audit = Audit(numbers, options.shape.layers, self.layouts.needed)
        self.waiting: deque[Request] = deque()
        self.guesses = Guesses(options.guesses)
        self._alone_ns = 0

    @property
    def pipelines(self) -> list[Pipeline]:
        return self.layouts.pipelines

    @property
    def serving(self) -> bool:
        return any(p.state == "serving" for p in self.pipelines)

    def handle(self, event: FrontEvent, now_ns: int) -> list[FrontEffect]:
        match event:
            case Asked():
                out = self._asked(event, now_ns)
            case Gone(request):
                out = self._gone(request)
            case Heard(node, word):
                out = self._heard(node, word, now_ns)
            case Guessed():
                self.guesses.heard(event)
                out = []
            case GuessesEnd():
                out = [*self.guesses.end(event)]
            case MachineUp(node, address):
                out = self.layouts.up(node, address, now_ns)
            case MachineDown(node, reason):
                out = self.layouts.down(node, reason, now_ns)
            case Drain(node):
                out = self._drain(node)
            case Tick():
                out = self._tick(now_ns)
            case _:
                assert_never(event)
        self._spread(now_ns)
        for pipeline in self.pipelines:
            out += pipeline.issue(self.guesses, now_ns)
        return out

    # -- requests -----------------------------------------------------------------------------------------------------

    def _asked(self, event: Asked, now_ns: int) -> list[FrontEffect]:
        request = Request(event, now_ns)
        promised = self.options.wanted.kv_tokens
        if request.reserved > promised:
            text = f"it can reach {request.reserved} tokens of KV cache, and this serving holds {promised}"
            return [Fail(event.request, text)]
        self.waiting.append(request)
        return []

    def _gone(self, request: int) -> list[FrontEffect]:
        self.waiting = deque(r for r in self.waiting if r.id != request)
        for pipeline in self.pipelines:
            pipeline.gone(request)
        return []

    def _spread(self, now_ns: int) -> None:
        """Requests go where they are done soonest; those of a pipeline that is being loaded anew go to others."""
        living = [p for p in self.pipelines if p.state != "down"]
        if not living:
            self._alone_ns = self._alone_ns or now_ns
            return
        self._alone_ns = 0
        for pipeline in self.pipelines:
            if pipeline.state == "down" and pipeline.load:
                self.waiting.extendleft(reversed(pipeline.leave()))
        if self.waiting:
            slow = {p.name: self.layouts.slowest_s(p) for p in living}
            while self.waiting:
                min(living, key=lambda p: (p.load + 1) * slow[p.name]).ask(self.waiting.popleft())

    # -- machines -----------------------------------------------------------------------------------------------------

    def _heard(self, node: NodeId, word: ToFront, now_ns: int) -> list[FrontEffect]:
        match word:
            case Drawn():
                return [e for p in self.pipelines for e in p.drawn(word, now_ns)]
            case Refusal():
                return [e for p in self.pipelines for e in p.refused(word, now_ns)]
            case Held(_, 0):
                return [] if self.layouts.held(word) else self._audit.held(word)
            case Held():
                return [e for p in self.pipelines for e in p.held(word, now_ns)]
            case Alive():
                for pipeline in self.pipelines:
                    pipeline.alive(word, now_ns)
                return []
            case Loaded():
                return self.layouts.loaded(word, now_ns)
            case Measured():
                self.layouts.measured(word)
                return []
            case Reached():
                self.layouts.distances.heard(word)
                return []
            case StageFailed():
                return self.layouts.failed(word, now_ns)
            case StageStatus():
                return self._status(node, word, now_ns)
            case Unloaded():
                return []
            case _:
                return [Reject(node, f"{type(word).__name__} is not for a front")]

    def _status(self, node: NodeId, word: StageStatus, now_ns: int) -> list[FrontEffect]:
        view = self.layouts.machines.known.get(node or word.node)
        if view is None:
            return [Reject(node, "it is no machine of this serving")]
        view.status = word
        return self._audit.heard(view, now_ns) if view.up else []

    def _drain(self, node: NodeId) -> list[FrontEffect]:
        if not self.layouts.drain(node):
            return [Reject(node, "it is no machine of this serving")]
        return [Explain(node, "is drained: its layers move to others")]

    # -- time ---------------------------------------------------------------------------------------------------------

    def _tick(self, now_ns: int) -> list[FrontEffect]:
        out = self.layouts.tick(now_ns)
        for pipeline in list(self.pipelines):
            effects, suspected = pipeline.tick(now_ns)
            out += effects
            if suspected is not None:
                out += self._suspect(*suspected, now_ns)
        if self._alone_ns and now_ns - self._alone_ns > PATIENCE_NS:
            out += self._give_up()
        return out

    def _suspect(self, node: NodeId, reason: str, now_ns: int) -> list[FrontEffect]:
        self.layouts.machines.suspect(node, now_ns)
        return [Suspect(node, reason), *self.layouts.down(node, reason, now_ns)]

    def _give_up(self) -> list[FrontEffect]:
        """Nobody could serve for minutes: whoever waits hears why."""
        self._alone_ns = 0
        ended = [*self.waiting, *(r for p in self.pipelines for r in p.leave())]
        self.waiting.clear()
        return [Fail(r.id, f"the model is not served at present: {self.layouts.reason}") for r in ended]
