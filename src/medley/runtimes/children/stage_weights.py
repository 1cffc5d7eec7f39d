"""A model's tensors from the front that serves it, for the thread that loads."""

from __future__ import annotations

import asyncio

from medley.models.described import Described
from medley.models.weightfiles import Tensors
from medley.protocol.errors import UserError
from medley.protocol.messages import Address
from medley.transports.tensors.plane import TensorPlane


class RemoteWeights:
    """`front` is whoever the coordinator names; `tensors` is called on another thread than the event loop."""

    def __init__(self, job: str) -> None:
        self._job = job
        self._plane: TensorPlane | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self.front = Address("", "")

    def reached(self, plane: TensorPlane, loop: asyncio.AbstractEventLoop) -> None:
        self._plane, self._loop = plane, loop

    def tensors(self, what: Described) -> Tensors:
        raise UserError(f"the files of '{what.name}' are not on this machine")
