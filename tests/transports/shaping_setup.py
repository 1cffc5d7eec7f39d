"""A loop whose time passes only when nothing else is left to do, and streams over a link for it."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from random import Random
from typing import Any, TypeVar

from medley.policies.tcp import Bottleneck, Delay, Stream, bottleneck
from medley.protocol.conditions import Conditions

T = TypeVar("T")
REAL_S = 5.0  # nothing is scheduled: something outside of the loop is awaited


class _Jumping(selectors.DefaultSelector):  # type: ignore[valid-type,misc]
    """Looks, and hardly waits; what would have been waited for is added to the loop's time."""

    passed_s = 0.0
    patience_s = 0.0

    def select(self, timeout: float | None = None) -> Any:
        events = super().select(0 if timeout == 0 else self.patience_s)
        if events or timeout == 0:
            return events
        if timeout is None:
            return super().select(REAL_S)
        self.passed_s += timeout
        return events


class VirtualLoop(asyncio.SelectorEventLoop):
    """`patience_s`: real time that bytes in real sockets are given before virtual time goes on without them."""

    def __init__(self, patience_s: float) -> None:
        self._jumping = _Jumping()
        self._jumping.patience_s = patience_s
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.passed_s


class VirtualTimer:
    """The running loop's time."""

    def now_ns(self) -> int:
        return round(asyncio.get_running_loop().time() * 1e9)

    async def sleep(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        over = loop.create_future()
        loop.call_later(seconds, lambda: over.done() or over.set_result(None))
        await over


def virtually(main: Coroutine[Any, Any, T], patience_s: float = 0.0) -> T:
    """Run it, and let what it closed be closed."""

    async def whole() -> T:
        result = await main
        await VirtualTimer().sleep(1.0)
        return result

    with asyncio.Runner(loop_factory=lambda: VirtualLoop(patience_s)) as runner:
        return runner.run(whole())


class OneLink:
    """A machine's link: streams that share its bottlenecks."""

    def __init__(self, conditions: Conditions, seed: int = 0, phase_s: float = 0.0) -> None:
        self.conditions, self.phase_s = conditions, phase_s
        self.chance = Random(seed)
        self.up: Bottleneck = bottleneck(conditions, "up")
        self.down: Bottleneck = bottleneck(conditions, "down")

    def connection(self) -> tuple[Stream, Stream]:
        c, chance = self.conditions, self.chance
        there, back = Delay(c, chance), Delay(c, chance)
        return (
            Stream(c, self.up, there, back, chance, self.phase_s),
            Stream(c, self.down, back, there, chance, self.phase_s),
        )


class Sink:
    """The end of a pipe: what arrived, and when."""

    def __init__(self) -> None:
        self.arrived: list[tuple[float, bytes]] = []
        self.ended_s = -1.0

    def writelines(self, pieces: list[memoryview]) -> None:
        self.arrived.append((asyncio.get_running_loop().time(), b"".join(pieces)))

    async def drain(self) -> None:
        return

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.ended_s = asyncio.get_running_loop().time()

    @property
    def content(self) -> bytes:
        return b"".join(data for _, data in self.arrived)
