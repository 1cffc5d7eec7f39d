"""A node's ways to engines that it cannot reach, and the way of others to its own: the gate, and what it must know.

Keeps `links.json` in the node's directory, from which `medley doctor` tells a person which way is taken and why.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
from collections.abc import Callable
from pathlib import Path

import msgspec

from medley.protocol.ids import JobId
from medley.protocol.messages import Address, EngineDown, EngineUp, FromNode, Peers, Relay, Routes, ToNode
from medley.protocol.stages.words import STAGE
from medley.runtimes.addresses import dialled_here, split
from medley.runtimes.children.environment import GATE, TRANSPORT
from medley.transports.identity import Credentials
from medley.transports.tunnel.contract import Why, pipe_name
from medley.transports.tunnel.gate import Gate
from medley.transports.tunnel.line import Line

FILE = "links.json"
KNOWN_MAX = 4096


class Relayed(msgspec.Struct, frozen=True):
    """One engine that this node reaches through the coordinator."""

    to: str
    endpoint: str
    why: str


class LinksFile(msgspec.Struct, frozen=True):
    """What `links.json` holds. `vault` is where the coordinator's vault would be dialled directly."""

    transport: str
    vault: str = ""
    relayed: tuple[Relayed, ...] = ()


class Links:
    """Belongs to the event loop of its node."""

    def __init__(self, directory: Path, control: str, transport: str, identity: Callable[[], Credentials]) -> None:
        self._file = directory / FILE
        self._transport = transport
        self._gate = Gate(Line(control, identity), self._own, self._piped)
        self._ours: dict[tuple[JobId, int], Address] = {}
        self._known: dict[str, tuple[str, str]] = {}  # name -> what it is, endpoint
        self._vault = ""
        self._relayed: dict[str, Relayed] = {}
        self._file.unlink(missing_ok=True)

    async def run(self, ready: asyncio.Event) -> None:
        """Serve until cancelled; `ready` is set once engines may be started."""
        if self._transport == "direct":
            ready.set()
            return
        await self._gate.run(ready.set)

    def environment(self) -> dict[str, str]:
        """What an engine must be told."""
        gate = f"{self._gate.proxy} {self._gate.secret}" if self._gate.proxy else ""
        return {TRANSPORT: self._transport, GATE: gate}

    def called(self, number: int, name: str) -> None:
        self._gate.called(number, name)

    def said(self, message: FromNode) -> None:
        """The node tells the coordinator of its engines."""
        match message:
            case EngineUp(job, _, shard, address):
                self._ours[job, shard] = address
            case EngineDown(job, _, shard):
                self._ours.pop((job, shard), None)
            case _:
                pass

    def told(self, message: ToNode) -> None:
        """The coordinator tells the node of others' engines."""
        match message:
            case Routes(job, _, routes, vault):
                for route in routes:
                    self._know(route.primary, f"shard {route.shard} of {job}")
                self._know_vault(vault)
            case Peers(job, _, shard) if shard == STAGE:
                self._know(message.vault, f"the front end of {job}")
            case Peers():
                self._know_vault(message.vault)
            case Relay(job, _, shard, backup):
                self._know(backup, f"the backup of shard {shard} of {job}")
            case _:
                pass

    def _own(self, name: str) -> tuple[str, int] | None:
        for address in self._ours.values():
            if name_of(address) == name:
                host, port = split(address.endpoint)
                return dialled_here(host), port
        return None

    def _know(self, address: Address, words: str) -> None:
        if len(self._known) >= KNOWN_MAX:
            self._known.clear()
        self._known[name_of(address)] = words, address.endpoint

    def _know_vault(self, vault: Address) -> None:
        self._know(vault, "the vault")
        if vault.endpoint and vault.endpoint != self._vault:
            self._vault = vault.endpoint
            self._write()

    def _piped(self, name: str, why: Why) -> None:
        words, endpoint = self._known.get(name, ("an engine", ""))
        found = Relayed(words, endpoint, why.value)
        if self._relayed.get(words) != found:
            self._relayed[words] = found
            self._write()

    def _write(self) -> None:
        kept = LinksFile(self._transport, self._vault, tuple(self._relayed.values())[-KNOWN_MAX:])
        fresh = self._file.with_suffix(".new")
        with contextlib.suppress(OSError):  # a full disk costs an explanation, not the node
            fresh.write_bytes(msgspec.json.encode(kept))
            fresh.replace(self._file)


def name_of(address: Address) -> str:
    """The name under which pipes lead to an engine."""
    return pipe_name(address.endpoint, base64.b64decode(address.key))


def read_links(directory: Path) -> LinksFile | None:
    """None where no node has written one yet, or a damaged one."""
    try:
        return msgspec.json.decode((directory / FILE).read_bytes(), type=LinksFile)
    except (OSError, msgspec.DecodeError):
        return None
