"""Who may be called by relay: the vault, and the shards of a job that the asker itself works on.

What the relay (`transports.tunnel`) asks of the coordinator. Names are looked up in what engines have announced over
authenticated streams; there is no way to name anything else.
"""

from __future__ import annotations

from collections.abc import Callable

from medley.protocol.errors import PeerError
from medley.protocol.ids import NodeId
from medley.protocol.messages import Called, ToNode
from medley.roles.coordinator import Coordinator
from medley.runtimes.addresses import dialled_here, split
from medley.runtimes.links import name_of
from medley.transports.tunnel.contract import Place, Why

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
        raise PeerError(f"no job that {asker} works on has an engine of this name now")

    def call(self, node: NodeId, number: int, name: str) -> bool:
        return self._send(node, Called(number, name))

    def piped(self, asker: NodeId, place: Place, why: Why) -> None:
        whom = f"{place.words} on {place.node}" if place.node else place.words
        self._explain(asker, f"reaches {whom} through the coordinator: {why.sentence(place.endpoint)}")
