"""The second thread of a stage's engine: weights in and out, and measuring, one after another, beside the passes.

Promises: each task ends in one `Said`; memory is looked at before it is taken; what this machine has in its own files
is read from there. Forgetting layers is done by the compute thread, in its order.
"""

from __future__ import annotations

import contextlib
import gc
import threading
from collections.abc import Callable
from queue import SimpleQueue

from medley.engines.memory import is_out_of_memory
from medley.engines.stage import StageEngine
from medley.engines.stage_measure import measure
from medley.engines.stage_refusals import StageRefusal
from medley.models.described import Described, described
from medley.models.memory import available_nbytes, readable
from medley.models.weightfiles import Tensors
from medley.protocol.errors import MedleyError, UserError
from medley.protocol.ids import NS_PER_S
from medley.protocol.stages.events import Said
from medley.protocol.stages.words import Load, Loaded, Measure, Measured, StageFailed, ToFront, Unload, Unloaded
from medley.runtimes.children.stage_inbox import Inbox
from medley.runtimes.clock import SystemClock

QUIET_S = 60.0  # a measurement waits so long for the requests that are served to end
RESERVE_NBYTES = 64 << 20  # for what loading needs beside the weights

Remote = Callable[[Described], Tensors]  # the weights as the front has them


class Loader:
    """`engine` is there once a load began. `quiet` is set while no request is served here."""

    def __init__(self, inbox: Inbox, remote: Remote, factor: float = 1.0) -> None:
        self._inbox, self._remote, self._factor = inbox, remote, factor
        self._work: SimpleQueue[Load | Unload | Measure] = SimpleQueue()
        self._clock = SystemClock()
        self._model = ""
        self._what: Described | None = None
        self._tensors: Tensors | None = None
        self.engine: StageEngine | None = None
        self.quiet = threading.Event()
        self.quiet.set()

    def ask(self, word: Load | Unload | Measure) -> None:
        self._work.put(word)

    def run(self) -> None:
        """For ever; a thread of its own."""
        while True:
            self._inbox.put(Said(self._done(self._work.get())))

    def _done(self, word: Load | Unload | Measure) -> ToFront:
        try:
            match word:
                case Load():
                    return self._load(word)
                case Unload():
                    return self._unload(word)
                case Measure():
                    return self._measure(word)
        except (MedleyError, OSError) as error:
            return StageFailed(word.number, str(error), False)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            return StageFailed(word.number, f"memory ran out: {error}", True)

    # -- layers ---------------------------------------------------------------------------------------------------

    def _load(self, word: Load) -> ToFront:
        began_ns = self._clock.now_ns()
        engine, what = self._engine(word)
        if not 0 <= word.first < word.end <= engine.layers:
            raise UserError(f"layers {word.first} to {word.end} are no part of a model of {engine.layers} layers")
        need = self._need_nbytes(engine, what, word)
        free = available_nbytes()
        if need > free:
            layers = f"layers {word.first} to {word.end - 1}"
            return StageFailed(word.number, f"{layers} take {readable(need)}, {readable(free)} are free", True)
        if self._tensors is None:
            self._tensors = what.files() or self._remote(what)
        nbytes = engine.load(self._tensors, word.first, word.end)
        engine.kv_limit_nbytes = word.kv_nbytes
        gc.collect()
        gc.freeze()  # modules live as long as their layers: no collection need look at them again
        return Loaded(word.number, word.first, word.end, nbytes, (self._clock.now_ns() - began_ns) / NS_PER_S)

    def _engine(self, word: Load) -> tuple[StageEngine, Described]:
        """This process's only one. Raises UserError for another model."""
        if self.engine is None or self._what is None:
            self._what, self._model = described(word.model), word.model
            config = self._what.configuration()
            self.engine = StageEngine(config, self._what.torch_dtype(), word.kv_nbytes, self._what.transform())
        elif word.model != self._model:
            raise UserError("this process serves another model, or the same one in another way")
        return self.engine, self._what

    def _need_nbytes(self, engine: StageEngine, what: Described, word: Load) -> int:
        """Bytes that are not here yet; a tied head shares the embedding's."""
        parts, held = what.sizes(engine.config), set(engine.loaded)
        need = sum(parts.layer_nbytes for layer in range(word.first, word.end) if layer not in held)
        begins = word.first == 0 and 0 not in held
        ends = word.end == engine.layers and engine.layers - 1 not in held
        need += parts.embedding_nbytes * begins
        shares = parts.tied and (begins or 0 in held)
        need += parts.head_nbytes * (ends and not shares)
        return need + RESERVE_NBYTES if need else 0

    def _unload(self, word: Unload) -> ToFront:
        engine, done = self.engine, threading.Event()
        if engine is not None:
            self._inbox.put(lambda: _forgotten(engine, word, done))
            done.wait()
        return Unloaded(word.number)

    # -- measuring ------------------------------------------------------------------------------------------------

    def _measure(self, word: Measure) -> ToFront:
        if not self.quiet.wait(QUIET_S):
            return StageFailed(word.number, "this machine is busy with requests; it would measure them, too", False)
        what = described(word.model)
        free = available_nbytes()
        seen = measure(what.configuration(), what.torch_dtype(), what.transform(), self._clock.now_ns)
        gc.collect()
        return Measured(word.number, self._slowed(seen.layer_s), self._slowed(seen.head_s), free)

    def _slowed(self, seconds: tuple[float, float, float]) -> tuple[float, float, float]:
        """What an emulated slow machine takes."""
        one, eight, prompt = seconds
        return one * self._factor, eight * self._factor, prompt * self._factor


def _forgotten(engine: StageEngine, word: Unload, done: threading.Event) -> None:
    with contextlib.suppress(StageRefusal):  # layers that the model does not have
        engine.unload(word.first, word.end)
    done.set()
