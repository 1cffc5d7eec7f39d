from __future__ import annotations

import asyncio

import pytest

from medley.concurrency import TaskGroup


async def _fails_when(gate: asyncio.Event) -> None:
    await gate.wait()
    raise ValueError("a child's own failure")


async def _catches_and_goes_on(gate: asyncio.Event, ready: asyncio.Event) -> None:
    while True:
        try:
            async with TaskGroup() as tasks:
                tasks.create_task(_fails_when(gate))
                ready.set()
        except* ValueError:
            gate.clear()
        await asyncio.sleep(0)


async def test_a_cancellation_in_the_moment_of_a_childs_failure_is_not_lost() -> None:
    gate, ready = asyncio.Event(), asyncio.Event()
    task = asyncio.ensure_future(_catches_and_goes_on(gate, ready))
    await ready.wait()
    gate.set()
    await asyncio.sleep(0)  # the child has failed; the group has not heard yet
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, timeout=10)


async def test_a_childs_failure_alone_is_only_that() -> None:
    gate = asyncio.Event()
    gate.set()
    with pytest.raises(ExceptionGroup):
        async with TaskGroup() as tasks:
            tasks.create_task(_fails_when(gate))
    await asyncio.sleep(0)
    task = asyncio.current_task()
    assert task is not None and not task.cancelling()
