"""Who may be called by relay: the vault, the shards of a job that the asker works on, who serves with it; and by an
operator, any stage.

What the relay (`transports.tunnel`) asks of the coordinator. Names are looked up in what engines have announced over
authenticated streams; there is no way to name anything else.
"""

from __future__ import annotations

from collections.abc import Callable

from medley.protocol.errors import PeerError
from medley.protocol.ids import NodeId
from medley.protocol.messages import Called, ToNode
from medley.roles.coordinator import Coordinator
from medley.roles.hosting import Hosting
from medley.runtimes.addresses import dialled_here, split
from medley.runtimes.links import name_of
from medley.transports.tunnel.contract import OPERATOR, Place, Why

Send = Callable[[NodeId, ToNode], bool]
Explain = Callable[[str, str], None]


class Switchboard:
    """`host` is where the coordinator's own sockets listen; `explain(subject, text)` is for people."""

    def __init__(self, role: Coordinator, host: str, send: Send, explain: Explain) -> None:
        self._role, self._host, self._send, self._explain = role, host, send, explain

    def admitted(self, node: NodeId) -> None:
        if node in self._role.revoked:
            raise PeerError(f"{node} was revoked: {self._role.revoked[node]}")

    def find(self, asker: NodeId, name: str) -> Place:
        vault = self._role.vault
        if vault.endpoint and name_of(vault) == name:
            port = split(vault.endpoint)[1]
            return Place("", "the vault", vault.endpoint, dialled_here(self._host), port)
        for job, run in self._role.runs.items():
            engines = run.ctx.roster.addresses
            if run.over or asker not in {node for node, _ in engines}:
                continue
            for (node, shard), address in engines.items():
                if shard >= 0 and name_of(address) == name:
                    return Place(node, f"shard {shard} of {job}", address.endpoint)
        for hosting in self._role.servings.live.values():
            if (asker in hosting.stages or asker.startswith(OPERATOR)) and (
                place := _served_with(hosting, name)
            ) is not None:
                return place
        raise PeerError(f"no job that {asker} works on has an engine of this name now")

    def call(self, node: NodeId, number: int, name: str) -> bool:
        return self._send(node, Called(number, name))

    def piped(self, asker: NodeId, place: Place, why: Why) -> None:
        whom = f"{place.words} on {place.node}" if place.node else place.words
        self._explain(asker, f"reaches {whom} through the coordinator: {why.sentence(place.endpoint)}")


def _served_with(hosting: Hosting, name: str) -> Place | None:
    """Another stage, or the front end, which is dialled from here: it has no stream to be called by."""
    for stage in hosting.stages.values():
        if stage.address is not None and name_of(stage.address) == name:
            return Place(stage.node, f"the stage of {hosting.job}", stage.address.endpoint)
    front = hosting.front
    if front is None or name_of(front) != name:
        return None
    host, port = split(front.endpoint)
    return Place("", f"the front end of {hosting.job}", front.endpoint, host, port)
