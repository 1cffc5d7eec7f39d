"""A stage's process: role and modelled engine on one thread, a loader beside it, a socket that answers probes.

As in production the thread that computes takes one thing after another from its inbox, and what arrives meanwhile
waits. A process can be killed, which takes everything with it, and stopped, which stops its socket too.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from medley.engines.stage_refusals import NoRoom, StageRefusal
from medley.policies.pipeline.describe import Times
from medley.policies.pipeline.drift import slowed
from medley.protocol.ids import NodeId
from medley.protocol.messages import Address
from medley.protocol.stages.events import (
    Arrived,
    Compute,
    Computed,
    Do,
    Explain,
    Export,
    Forget,
    Halt,
    Import,
    Met,
    Post,
    Refused,
    Reject,
    Said,
    StageEffect,
    StageEvent,
    Unjoined,
)
from medley.protocol.stages.words import (
    AskHeld,
    Echo,
    Held,
    Knock,
    Layout,
    Load,
    Loaded,
    Measure,
    Measured,
    Pass,
    Position,
    Probe,
    Reach,
    Shadow,
    StageFailed,
    StageStatus,
    Unload,
    Unloaded,
    Word,
    tokens_of,
)
from medley.roles.stage import NOBODY, Stage, probed
from medley.roles.stage_reach import Reaching
from medley.runtimes.simulated.kernel import MS, S
from medley.runtimes.simulated.serving.engine import ModelledEngine
from medley.runtimes.simulated.serving.setup import Host

if TYPE_CHECKING:
    from medley.runtimes.simulated.serving.world import ServingWorld

STATUS_NS = S
MEASURE_S = 0.1
BIT = 8  # positions of a copy that goes out bit by bit
Call = Callable[[], None]


class StageProcess:
    """Of one machine, from its start to its death. A new one has a new address and holds nothing."""

    def __init__(self, world: ServingWorld, host: Host, address: Address) -> None:
        self.world, self.host, self.address = world, host, address
        self.role = Stage(host.name)
        shape = world.setup.shape
        self.engine = ModelledEngine(shape.layers, shape.kv_nbytes, world.setup.positions, 0)
        self.alive = True
        self.paused_ns = 0  # until when it stands still
        self.slowness = 1.0
        self.loading = 0
        self.reaching = Reaching()
        self.seen = NOBODY  # the newest layout that its socket has seen
        self.computing: Pass | None = None
        self.copying: deque[Export] = deque()
        self._inbox: deque[StageEvent | Call] = deque()
        self._stopped: list[Call] = []
        self._began_ns = 0
        self._busy_ns = 0
        self._copied_nbytes = 0
        world.wires.listen(address, host.name, self.arrive)
        self._inbox.append(Met(world.front.address))
        world.kernel.after(STATUS_NS, self._awake, self._status)
        self._turn()

    @property
    def name(self) -> NodeId:
        return self.host.name

    # -- its life -----------------------------------------------------------------------------------------------------

    def die(self) -> None:
        self.alive = False
        self.world.wires.close(self.address)

    def pause(self, until_ns: int) -> None:
        """SIGSTOP: nothing of it moves, its socket's buffers fill."""
        self.paused_ns = max(self.paused_ns, until_ns)
        self.world.kernel.at(self.paused_ns, self._go_on)

    def resume(self) -> None:
        """SIGCONT."""
        self.paused_ns = min(self.paused_ns, self.world.kernel.now)
        self._go_on()

    def _go_on(self) -> None:
        if self.world.kernel.now < self.paused_ns:
            return
        waiting, self._stopped = self._stopped, []
        for call in waiting:
            self._awake(call)

    def _awake(self, call: Call) -> None:
        """Do this, unless it is dead; later, if it is stopped."""
        if not self.alive:
            return
        if self.world.kernel.now < self.paused_ns:
            self._stopped.append(call)
        else:
            call()

    def _after(self, seconds: float, call: Call) -> None:
        self.world.kernel.after(int(seconds * self.slowness * S), self._awake, call)

    # -- its socket ---------------------------------------------------------------------------------------------------

    def arrive(self, _node: NodeId, word: Word, body: Any) -> None:
        self._awake(lambda: self._take(word, body))

    def _take(self, word: Word, body: Any) -> None:
        if isinstance(word, Reach | Knock | Echo):
            self._timed(self.reaching.heard(word, self.world.kernel.now))
            return
        if isinstance(word, Probe):
            busy_ns = self.world.kernel.now - self._began_ns if self.computing is not None else 0
            for post in probed(self.seen, word, busy_ns):
                self._post(post)
            return
        if isinstance(word, Layout) and word.generation > self.seen.generation:
            self.seen = word
        self._inbox.append(Arrived(word, body))  # type: ignore[arg-type]
        self._turn()

    def _timed(self, what: Post | Said | None) -> None:
        if isinstance(what, Post):
            self._post(what)
        elif what is not None:
            self._inbox.append(what)
            self._turn()

    def _post(self, post: Post) -> None:
        self.world.wires.post(self.address, self.name, post.to, post.word, post.body)

    # -- its thread ---------------------------------------------------------------------------------------------------

    def _turn(self) -> None:
        """Take what waits, until something takes time."""
        while self.alive and self.computing is None and (self._inbox or self.copying):
            if not self._inbox:
                self._copy_bit()
                continue
            item = self._inbox.popleft()
            if callable(item):
                item()
            else:
                self._handle(item)

    def _handle(self, event: StageEvent) -> None:
        effects = self.role.handle(event, self.world.kernel.now)
        self.world.handled(self.name, event, effects)
        for effect in effects:
            self._do(effect)
        self.world.watch_stage(self, event, effects)

    def _do(self, effect: StageEffect) -> None:
        match effect:
            case Post():
                self._post(effect)
            case Compute():
                self._begin(effect)
            case Export():
                self._export(effect)
            case Halt(first, end, to):
                self.copying = deque(e for e in self.copying if (e.first, e.end, e.to) != (first, end, to))
            case Import(word, body):
                self._import(word, body)
            case Forget(requests):
                for request in requests:
                    self._free(request)
            case Do(word):
                self._work(word)
            case Explain() | Reject():
                self.world.remark(self.name, effect)

    # -- a pass -------------------------------------------------------------------------------------------------------

    def _begin(self, effect: Compute) -> None:
        assert self.computing is None, "one pass is computed at a time"
        self.computing, self._began_ns = effect.word, self.world.kernel.now
        self._after(self._seconds(effect), lambda: self._end(effect))

    def _seconds(self, effect: Compute) -> float:
        measured, word = self.host.measured, effect.word
        seconds = (effect.end - effect.first) * at(measured.layer, tokens_of(word))
        if effect.end == self.engine.layers:
            seconds += measured.head.at(max(1, sum(row.samples for row in word.rows)))
        return seconds

    def _end(self, effect: Compute) -> None:
        self.world.watch_compute(self, effect)
        done = self._computed(effect)
        self._busy_ns += self.world.kernel.now - self._began_ns
        self.computing = None
        self._handle(done)
        self._turn()

    def _computed(self, effect: Compute) -> Computed:
        word, engine = effect.word, self.engine
        for request in word.frees:
            self._free(request)
        try:
            for opening in word.opens:
                engine.open(opening)
            if self.world.chance("engine full", "compute"):
                raise NoRoom("somebody else took the memory", word.rows[0].request)
            out: Any = engine.forward(word.rows, effect.body, effect.first, effect.end)
        except StageRefusal as refused:
            why = Refused(refused.request or word.rows[0].request, refused.kind, refused.held, str(refused))
            return Computed(word, refused=why)
        return Computed(word, draws=out) if effect.end == engine.layers else Computed(word, hidden=out)

    def _free(self, request: int) -> None:
        self.engine.free(request)
        self.copying = deque(e for e in self.copying if e.request != request)

    # -- copies -------------------------------------------------------------------------------------------------------

    def _export(self, effect: Export) -> None:
        if not self.world.setup.bits:
            self._send(effect, 1 << 30)
            return
        self.copying = deque(e for e in self.copying if not _same(e, effect) or e.start < effect.start)
        self.copying.append(effect)

    def _copy_bit(self) -> None:
        effect = self.copying.popleft()
        left = self._send(effect, BIT)
        if left is not None:
            self.copying.append(left)

    def _send(self, effect: Export, most: int) -> Export | None:
        """Copy at most so many positions; what is left."""
        engine, shape = self.engine, self.world.setup.shape
        held = engine.held(effect.first, effect.end).get(effect.request, 0)
        stop = held if effect.count < 0 else min(held, effect.start + effect.count)
        end = min(stop, effect.start + most)
        if effect.start >= end:
            return None
        kv = engine.export_kv(effect.request, effect.first, effect.end, effect.start, end)
        word = self._shadow(effect, end - effect.start, max(1, shape.kv_nbytes // 4))
        self._copied_nbytes += len(kv) * (end - effect.start) * shape.kv_nbytes
        self._post(Post(effect.to, word, kv))
        return replace(effect, start=end, count=stop - end) if end < stop else None

    def _shadow(self, effect: Export, count: int, width: int) -> Shadow:
        return Shadow(
            self.address, effect.request, effect.first, effect.end, effect.start, count,
            1, width, "bf16",
        )  # fmt: skip

    def _import(self, word: Shadow, body: Any) -> None:
        try:
            self.engine.import_kv(word.request, word.first, word.end, word.start, body)
        except NoRoom as full:
            self.world.remark(self.name, Explain(self.name, f"a copy has no room: {full}"))
        except StageRefusal as refused:
            if refused.kind == "gap":
                self._inbox.append(Unjoined(word, refused.held))

    # -- work ---------------------------------------------------------------------------------------------------------

    def _work(self, word: Load | Unload | Measure | AskHeld) -> None:
        match word:
            case Load():
                self._load(word)
            case Unload():
                self.engine.unload(word.first, word.end)
                self._inbox.append(Said(Unloaded(word.number)))
            case Measure():
                self._after(MEASURE_S, lambda: self._measured(word))
            case AskHeld():
                self._inbox.append(Said(self._held(word)))

    def _held(self, word: AskHeld) -> Held:
        held = self.engine.held(word.first, word.end)
        return Held(word.number, word.generation, tuple(Position(r, n) for r, n in sorted(held.items())))

    def _load(self, word: Load) -> None:
        shape = self.world.setup.shape
        missing = [layer for layer in range(word.first, word.end) if layer not in self.engine.loaded]
        nbytes = len(missing) * shape.layer_nbytes + shape.ends_nbytes(word.first == 0, word.end == shape.layers)
        seconds = nbytes / self.host.load_bytes_per_s
        self.loading += 1
        self._after(seconds, lambda: self._loaded(word, nbytes, seconds))

    def _loaded(self, word: Load, nbytes: int, seconds: float) -> None:
        self.loading -= 1
        if self.world.chance("load fails", "load"):
            self._say(StageFailed(word.number, "its memory is full", True))
            return
        self.engine.kv_limit_nbytes = max(self.engine.kv_limit_nbytes, word.kv_nbytes)
        self.engine.load(word.first, word.end)
        self._say(Loaded(word.number, word.first, word.end, nbytes, seconds))

    def _measured(self, word: Measure) -> None:
        m = slowed(self.host.measured, self.slowness)
        layer, head = m.layer, m.head
        self._say(
            Measured(
                word.number,
                (layer.batch1_s, layer.batch8_s, layer.prefill256_s),
                (head.batch1_s, head.batch8_s, head.prefill256_s),
                m.memory_nbytes,
            )
        )

    def _say(self, word: Any) -> None:
        self._inbox.append(Said(word))
        self._turn()

    def _status(self) -> None:
        self.world.kernel.after(STATUS_NS, self._awake, self._status)
        engine, layout = self.engine, self.role.layout
        busy, self._busy_ns = min(1.0, self._busy_ns / STATUS_NS), 0
        nbytes = engine.kv_nbytes + len(engine.loaded) * self.world.setup.shape.layer_nbytes
        self._say(
            StageStatus(
                self.name, layout.generation, engine.loaded, 0.0, busy, self.role.queue, self.role.requests,
                engine.kv_nbytes, nbytes, self._copied_nbytes,
            )
        )  # fmt: skip


def at(times: Times, tokens: int) -> float:
    """Seconds of one layer for so many tokens: the measurements, and lines between them."""
    if tokens <= 8:
        return times.at(tokens)
    return times.batch8_s + (tokens - 8) * max(0.0, times.prefill256_s - times.batch8_s) / 248


def _same(one: Export, other: Export) -> bool:
    return (one.request, one.first, one.end, one.to) == (other.request, other.first, other.end, other.to)


__all__ = ["MS", "StageProcess", "at"]
