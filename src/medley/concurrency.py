"""Structured concurrency, with one hole of Python 3.11 and 3.12 closed.

There, a task group whose child fails in the very moment in which the group itself is cancelled reports the failure
and forgets the cancellation; whoever catches the failure then runs on for ever. Python 3.13 cancels again, and so
does this one. Every task group of Medley is this one.
"""

from __future__ import annotations

import asyncio
import sys
from types import TracebackType


class TaskGroup(asyncio.TaskGroup):
    """`asyncio.TaskGroup` as of Python 3.13 (CPython issue 116720): no cancellation from outside is swallowed."""

    # asyncio's own: whether the group cancelled the task that waits in it because a child failed.
    _parent_cancel_requested: bool

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        already = self._parent_cancel_requested
        try:
            await super().__aexit__(kind, error, trace)
        except BaseExceptionGroup:
            if sys.version_info < (3, 13):
                _restore(taken_back=already or not self._parent_cancel_requested)
            raise


def _restore(taken_back: bool) -> None:
    """Take back the group's own cancellation where asyncio did not; deliver again the one from outside, if any."""
    task = asyncio.current_task()
    assert task is not None
    if not taken_back:
        task.uncancel()
    if task.cancelling():
        task.uncancel()
        task.cancel()
