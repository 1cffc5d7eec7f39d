"""A model's tensors from the front that serves it, for the thread that loads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from medley.models.described import Described
from medley.models.remote_weights import RemoteTensors
from medley.models.weightfiles import Tensors
from medley.protocol.errors import PeerError
from medley.protocol.messages import Address
from medley.runtimes.children.plane import peer_of
from medley.transports.tensors.plane import TensorPlane
from medley.transports.tensors.wire import Header, Kind


class RemoteWeights:
    """`front` is whoever the coordinator names; all but `reached` is called on another thread than the event loop."""

    def __init__(self, job: str) -> None:
        self._job = job
        self._plane: TensorPlane | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self.front = Address("", "")

    def reached(self, plane: TensorPlane, loop: asyncio.AbstractEventLoop) -> None:
        self._plane, self._loop = plane, loop

    def tensors(self, what: Described) -> Tensors:
        return RemoteTensors(self, what.fingerprint)

    # -- what `RemoteTensors` asks for, in names that `serving.weights_keeper` understands ---------------------------

    def manifest(self, most_nbytes: int) -> bytes:
        def made(nbytes: int) -> bytearray:
            if nbytes > most_nbytes:
                raise PeerError(f"a list of tensors of {nbytes} bytes is over {most_nbytes}")
            return bytearray(nbytes)

        return bytes(self._get("manifest", 0, made))

    def piece(self, name: str, number: int, into: memoryview) -> None:
        self._get(f"tensor/{name}", number, into)

    def _get(self, name: str, number: int, into: memoryview | Callable[[int], bytearray]) -> memoryview:
        assert self._plane is not None and self._loop is not None
        header = Header(kind=Kind.ARTIFACT, run=self._job, name=name, sequence=number)
        asking = self._plane.get(peer_of(self.front), header, into)
        try:
            return asyncio.run_coroutine_threadsafe(asking, self._loop).result()
        except ValueError as error:  # of another size than the manifest says
            raise PeerError(f"{name}: {error}") from error
