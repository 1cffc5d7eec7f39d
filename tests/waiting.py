"""How a test waits: for a condition, with a deadline, and with a sentence when the condition never came.

Sleeping for a guessed time is either too short on a busy machine or too long on every other.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable

_STEP_S = 0.01


def until(condition: Callable[[], object], *, deadline_s: float = 20.0, what: str = "the condition") -> None:
    """Return once `condition()` is true; fail when it is not within `deadline_s`."""
    pause = threading.Event()
    end = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end, f"{what} did not come within {deadline_s} s"
        pause.wait(_STEP_S)


async def until_async(
    condition: Callable[[], object | Awaitable[object]],
    *,
    deadline_s: float = 20.0,
    what: str = "the condition",
) -> None:
    """`until` for a test that runs in an event loop; `condition` may be a coroutine function."""
    pause = asyncio.Event()
    end = time.monotonic() + deadline_s
    while True:
        holds = condition()
        if await holds if isinstance(holds, Awaitable) else holds:
            return
        assert time.monotonic() < end, f"{what} did not come within {deadline_s} s"
        try:
            async with asyncio.timeout(_STEP_S):
                await pause.wait()
        except TimeoutError:
            continue
