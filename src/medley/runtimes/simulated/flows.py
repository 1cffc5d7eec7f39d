"""How transfers share links: max-min fairness by progressive filling, recomputed only where something changed.

A pipe is one direction of one machine's access link. A flow crosses at most two of finite capacity and has a limit of
its own (what one TCP stream reaches). Everything is bytes and bytes a second; a flow with nothing in its way goes at
its limit. Many flows that meet are settled together, at most `QUANTUM_NS` late for each of them, so that a hundred
workers that push at once cost a hundred steps and not ten thousand.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from math import inf
from operator import attrgetter

from medley.runtimes.simulated.kernel import Kernel, S

QUANTUM_NS = 50_000
EXACT_MAX = 16  # so many flows that meet are settled at once, without any delay
DONE_NBYTES = 1e-3


@dataclass(slots=True, eq=False)
class Pipe:
    """One direction of one link."""

    name: str
    bytes_per_s: float
    flows: dict[Flow, None] = field(default_factory=dict)
    free: float = 0.0
    open: int = 0


@dataclass(slots=True, eq=False)
class Flow:
    """Bytes on their way."""

    pipes: tuple[Pipe, ...]
    nbytes: float
    limit: float
    done: Callable[[], None]
    left: float = 0.0
    rate: float = 0.0
    since_ns: int = 0
    stamp: int = 0

    def left_at(self, now_ns: int) -> float:
        """Bytes that have not left yet."""
        left = self.left - self.rate * (now_ns - self.since_ns) / S
        return left if left > 0.0 else 0.0

    def progress(self, now_ns: int) -> None:
        """Count from now on what is left."""
        if self.since_ns != now_ns:
            self.left = self.left_at(now_ns)
            self.since_ns = now_ns


class Sharing:
    """All flows of a world."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._dirty: dict[Pipe, None] = {}
        self._due = False
        self._stamp = 0

    def begin(self, pipes: tuple[Pipe, ...], nbytes: float, limit: float, done: Callable[[], None]) -> Flow:
        """Start to move `nbytes`; `done` is called when the last one has left."""
        flow = Flow(pipes, nbytes, limit, done, nbytes, 0.0, self._kernel.now)
        for pipe in pipes:
            pipe.flows[flow] = None
        if pipes:
            self.touch(pipes)
        else:
            self._alone(flow)
        return flow

    def end(self, flow: Flow) -> None:
        """Take a flow out, whatever is left of it; `done` will not be called."""
        flow.progress(self._kernel.now)
        flow.stamp = -1
        for pipe in flow.pipes:
            pipe.flows.pop(flow, None)
        self.touch(flow.pipes)

    def limit(self, flow: Flow, bytes_per_s: float, left: float | None = None) -> None:
        """Another limit from now on; `left` more bytes to go than there were, if some must be sent again."""
        flow.progress(self._kernel.now)
        flow.limit = bytes_per_s
        if left is not None:
            flow.left = left
        if flow.pipes:
            self.touch(flow.pipes)
        else:
            self._alone(flow)

    def touch(self, pipes: Iterable[Pipe]) -> None:
        """Something changed here: settle it soon."""
        for pipe in pipes:
            self._dirty[pipe] = None
        if not self._due and self._dirty:
            self._due = True
            many = max(len(p.flows) for p in self._dirty)
            self._kernel.after(many * QUANTUM_NS if many > EXACT_MAX else 0, self._settle)

    def left(self, flow: Flow) -> float:
        """Bytes that have not left yet."""
        return flow.left_at(self._kernel.now)

    # -- settling ---------------------------------------------------------------------------------------------

    def _settle(self) -> None:
        dirty, self._dirty, self._due = self._dirty, {}, False
        seen: dict[Pipe, None] = {}
        for pipe in dirty:
            if pipe not in seen:
                self._settle_together(*_met(pipe, seen))

    def _settle_together(self, flows: dict[Flow, None], pipes: list[Pipe]) -> None:
        """Rates of one set of flows that meet, and when the first of them will be done."""
        if not flows:
            return
        self._stamp = stamp = self._stamp + 1
        now = self._kernel.now
        for flow in flows:
            flow.progress(now)
            flow.stamp = stamp
        if len(flows) == 1:
            for flow in flows:
                flow.rate = max(0.0, min(flow.limit, *(pipe.bytes_per_s for pipe in flow.pipes)))
        else:
            fill(flows, pipes)
        soon = min([f.left / f.rate for f in flows if f.rate > 0], default=inf)
        if soon < inf:
            self._kernel.after(_ns(soon), self._finish, list(flows), stamp)

    def _alone(self, flow: Flow) -> None:
        self._stamp += 1
        flow.stamp, flow.rate = self._stamp, flow.limit
        if flow.rate > 0:
            self._kernel.after(_ns(flow.left / flow.rate), self._finish, [flow], self._stamp)

    def _finish(self, flows: list[Flow], stamp: int) -> None:
        """Those that are through, and those that would be within the quantum."""
        slack_s = len(flows) * QUANTUM_NS / S if len(flows) > EXACT_MAX else 0.0
        slack_s, now = slack_s + 1e-9, self._kernel.now
        done = [f for f in flows if f.stamp == stamp and f.left_at(now) <= DONE_NBYTES + f.rate * slack_s]
        for flow in done:
            flow.left, flow.rate, flow.stamp = 0.0, 0.0, -1
            for pipe in flow.pipes:
                pipe.flows.pop(flow, None)
            self.touch(flow.pipes)
        for flow in done:
            flow.done()


def fill(flows: Iterable[Flow], pipes: Iterable[Pipe]) -> None:
    """Max-min fair rates: raise all alike; who meets a limit or a full pipe stays there.

    `pipes` must be all the pipes of `flows`, and these all the flows of `pipes`.
    """
    waiting = sorted(flows, key=attrgetter("limit"), reverse=True)
    heap: list[tuple[float, int, Pipe]] = []
    for number, pipe in enumerate(pipes):
        pipe.free, pipe.open = pipe.bytes_per_s, len(pipe.flows)
        if pipe.open:
            heap.append((pipe.free / pipe.open, number, pipe))
    heapq.heapify(heap)
    for flow in waiting:
        flow.rate = -1.0
    while heap:
        level, number, pipe = heap[0]
        if pipe.open == 0:
            heapq.heappop(heap)
            continue
        present = pipe.free / pipe.open
        if present > level:
            heapq.heapreplace(heap, (present, number, pipe))  # shares only grow: look again when it is the least
            continue
        while waiting and waiting[-1].rate >= 0:
            waiting.pop()
        if waiting and waiting[-1].limit <= level:
            flow = waiting.pop()
            _fix(flow, flow.limit)
            continue
        share = max(0.0, level)
        for flow in pipe.flows:
            if flow.rate < 0:
                _fix(flow, share)
        heapq.heappop(heap)
    for flow in waiting:
        if flow.rate < 0:
            flow.rate = flow.limit


def _fix(flow: Flow, rate: float) -> None:
    flow.rate = rate
    for pipe in flow.pipes:
        pipe.free -= rate
        pipe.open -= 1


def _met(pipe: Pipe, seen: dict[Pipe, None]) -> tuple[dict[Flow, None], list[Pipe]]:
    """All flows that share a pipe with one that shares a pipe ... with this one's."""
    seen[pipe] = None
    pipes, flows = [pipe], dict[Flow, None]()
    for one in pipes:  # grows meanwhile
        fresh = [flow for flow in one.flows if flow not in flows]
        flows.update(dict.fromkeys(fresh))
        for flow in fresh:
            for other in flow.pipes:
                if other not in seen:
                    seen[other] = None
                    pipes.append(other)
    return flows, pipes


def _ns(seconds: float) -> int:
    """Rounded up, so that nothing is found unfinished at its end."""
    return int(seconds * S) + 1
