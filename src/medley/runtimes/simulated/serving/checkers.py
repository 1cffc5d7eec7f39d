"""I1 to I5 of the serving, apart from the roles: what is said of tokens, passes and KV is checked by code of its own.

Each request has a reference: what one machine that nobody disturbs would draw, and the KV of every layer on the way.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from medley.protocol.stages.events import (
    Arrived,
    Asked,
    Compute,
    Computed,
    Emit,
    Fail,
    FrontEffect,
    FrontEvent,
    Heard,
    StageEffect,
    StageEvent,
)
from medley.protocol.stages.words import Drawn, Layout, Pass, Refusal
from medley.runtimes.simulated.checkers.violation import Violation
from medley.runtimes.simulated.serving.text import POISON, Reference
from medley.runtimes.simulated.serving.watch import ServingWatcher

if TYPE_CHECKING:
    from medley.runtimes.simulated.serving.stage import StageProcess
    from medley.runtimes.simulated.serving.world import ServingWorld


class References:
    """Of the requests of one world, computed when they are needed."""

    def __init__(self, layers: int) -> None:
        self._layers = layers
        self._known: dict[int, Reference] = {}

    def asked(self, asked: Asked) -> None:
        self._known[asked.request] = Reference(asked, self._layers)

    def of(self, request: int) -> Reference:
        found = self._known.get(request)
        if found is None:
            raise Violation("I2", f"request {request} was never asked")
        return found


class Tokens(ServingWatcher):
    """I1: a client's tokens are those of the undisturbed run, each once, in order. I5: why an answer may fail."""

    def __init__(self, references: References) -> None:
        self._references = references
        self._heard: dict[int, int] = {}
        self._ended: set[int] = set()

    def front(self, world: ServingWorld, event: FrontEvent, effects: Sequence[FrontEffect]) -> None:
        if isinstance(event, Asked):
            self._references.asked(event)
        for effect in effects:
            if isinstance(effect, Emit):
                self._emitted(effect)
            elif isinstance(effect, Fail):
                self._failed(world, effect)

    def _emitted(self, effect: Emit) -> None:
        request, heard = effect.request, self._heard.get(effect.request, 0)
        if request in self._ended:
            raise Violation("I1", f"request {request} hears more after its end")
        whole = self._references.of(request).draws
        for place, draw in enumerate(effect.draws, start=heard):
            if place >= len(whole) or draw != whole[place]:
                wanted = whole[place] if place < len(whole) else "the end"
                raise Violation("I1", f"request {request} hears {draw} as token {place}, not {wanted}")
        heard = self._heard[request] = heard + len(effect.draws)
        if bool(effect.finish) != (heard == len(whole)):
            raise Violation("I1", f"request {request} ends ({effect.finish!r}) after {heard} of {len(whole)} tokens")
        if effect.finish:
            self._ended.add(request)

    def _failed(self, world: ServingWorld, effect: Fail) -> None:
        if effect.request in self._ended:
            raise Violation("I5", f"request {effect.request} fails after its end: {effect.reason}")
        self._ended.add(effect.request)
        asked = self._references.of(effect.request).asked
        allowed = ["this serving holds", "memory", "not served at present", "over the limit"]
        allowed += ["not finite"] if asked.seed == POISON else []
        if not any(words in effect.reason for words in allowed):
            raise Violation("I5", f"request {effect.request} fails: {effect.reason}")


class Kv(ServingWatcher):
    """I2: a row's earlier positions are held, and are what its tokens lead to. I4: KV is within the limit."""

    def __init__(self, references: References) -> None:
        self._references = references

    def compute(self, world: ServingWorld, process: StageProcess, effect: Compute) -> None:
        opened = {opening.request for opening in effect.word.opens}
        for row in effect.word.rows:
            if row.request in opened:
                continue  # it may begin as a copy of another; its next row tells
            reference = self._references.of(row.request)
            for layer in range(effect.first, effect.end):
                held = process.engine.entries(row.request, layer)[: row.start]
                if held != tuple(reference.entries[layer][: len(held)]):
                    raise Violation("I2", f"{process.name} computes {row} on wrong KV in layer {layer}")

    def stage(
        self, world: ServingWorld, process: StageProcess, event: StageEvent, effects: Sequence[StageEffect]
    ) -> None:
        engine = process.engine
        if isinstance(event, Computed) and event.refused is None:
            self._whole(process, event)
        if engine.kv_nbytes > engine.kv_limit_nbytes:
            raise Violation("I4", f"{process.name} holds {engine.kv_nbytes} bytes of KV, over {engine.kv_limit_nbytes}")

    def _whole(self, process: StageProcess, event: Computed) -> None:
        """What a pass was computed on, where it began as a copy; and that it left nothing out."""
        layout = process.role.layout
        if event.word.generation != layout.generation:
            return
        hop = layout.hops[event.word.place]
        for row in event.word.rows:
            reference, known = self._references.of(row.request), row.start + row.count - max(0, row.samples - 1)
            for layer in range(hop.first, hop.end):
                held = process.engine.entries(row.request, layer)[:known]
                if len(held) < known or held != tuple(reference.entries[layer][: len(held)]):
                    raise Violation("I2", f"{process.name} has computed {row} on wrong KV in layer {layer}")


class Generations(ServingWatcher):
    """I3: no pass of an older generation changes anything. E1: one of the present generation can be computed."""

    def __init__(self) -> None:
        self._newest: dict[int, int] = {}  # of each process, what it was told
        self._generations: set[int] = set()  # of the front's pipelines, before its present event

    def stage(
        self, world: ServingWorld, process: StageProcess, event: StageEvent, effects: Sequence[StageEffect]
    ) -> None:
        newest = self._newest.get(id(process), 0)
        if isinstance(event, Arrived) and isinstance(event.word, Layout):
            newest = self._newest[id(process)] = max(newest, event.word.generation)
        for effect in effects:
            word = effect.word if isinstance(effect, Compute) else None
            if isinstance(word, Pass) and word.generation != newest:
                raise Violation("I3", f"{process.name}, in {newest}, computes a pass of generation {word.generation}")

    def front(self, world: ServingWorld, event: FrontEvent, effects: Sequence[FrontEffect]) -> None:
        if isinstance(event, Heard) and isinstance(event.word, Drawn | Refusal):
            late = event.word.generation not in self._generations
            if not late and isinstance(event.word, Refusal) and event.word.kind == "bad":
                raise Violation("E1", f"{event.node} is asked to compute what cannot be: {event.word.reason}")
            if late and any(isinstance(effect, Emit | Fail) for effect in effects):
                raise Violation("I3", f"a word of generation {event.word.generation} changes an answer")
        serving = [pipeline for pipeline in world.front.role.pipelines if pipeline.state != "down"]
        self._generations = {pipeline.generation for pipeline in serving}


def everything(layers: int) -> list[ServingWatcher]:
    """All who check one world."""
    references = References(layers)
    return [Tokens(references), Kv(references), Generations()]


def finished(world: ServingWorld) -> None:
    """When all requests have ended, and a while has passed: I4 and I5."""
    for answer in world.front.answers.values():
        if not answer.ended:
            raise Violation("I5", f"request {answer.asked.request} has not ended")
    remembered = {request for pipeline in world.front.role.pipelines for request in pipeline.remembered}
    for name, machine in world.machines.items():
        process = machine.process
        left = set(process.engine.requests) - remembered if process is not None else set()
        if left:
            raise Violation("I4", f"{name} holds KV of {sorted(left)}, whose requests have ended")
