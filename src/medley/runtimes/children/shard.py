"""A shard's engine process: parts arrive by the tensor plane, commits by the pipe, both meet in one `ShardEngine`.

All arithmetic is on one thread, in the order in which it was asked for; the event loop only moves bytes. A pull
waits until its version is applied here, and is refused when it is gone.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TypeVar

import msgspec
import numpy as np
import xxhash

from medley.concurrency import TaskGroup
from medley.engines.parts import Cut, Reader, load_part
from medley.engines.shard import ShardEngine
from medley.protocol.codec import parse
from medley.protocol.engine import (
    AppliedVersion,
    Apply,
    Command,
    Discard,
    Failed,
    Loaded,
    LoadShard,
    Opened,
    OpenShard,
    PartArrived,
    PeersKnown,
    PinVersion,
    SetPeers,
    SetRelay,
    UnpinVersion,
    WriteVersion,
    WroteVersion,
)
from medley.protocol.errors import Damaged, FrameError, MedleyError, Unavailable
from medley.protocol.messages import Address
from medley.protocol.plan import Plan
from medley.runtimes.children.environment import encrypted, host, room
from medley.runtimes.children.mapped import mapped
from medley.runtimes.children.plane import Admission, fetch, open_plane, peer_of
from medley.runtimes.pipe import ChildLink
from medley.store.checkpoints import Part
from medley.store.errors import is_full
from medley.transports.tensors.contract import Accept, Already, Refuse, Refused, Source
from medley.transports.tensors.plane import TensorPlane
from medley.transports.tensors.wire import Header, Kind

T = TypeVar("T")
UNFINISHED = "medley-part-"
STAGED_MAX = 4096  # updates; far above workers x in_flight of any sensible fleet


class ShardHost:
    """Handler of the tensor plane, and executor of the role's commands."""

    def __init__(self, link: ChildLink, opened: OpenShard) -> None:
        self._link = link
        self._opened = opened
        self._plan = parse(opened.plan, Plan)
        self._generation = opened.generation
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="shard")
        self._engine = ShardEngine(self._plan.layout(), opened.blocks, self._plan.spec.train, opened.threads)
        self._reader = Reader(self._engine, opened.blocks)
        self._part_nbytes = sum(self._engine.part_nbytes().values())
        self._held: dict[str, bytes] = {}  # update -> reply, while staged or just applied
        self._payloads: dict[str, np.ndarray] = {}
        self._changed = asyncio.Condition()
        self._version = -1
        self._vault = Address("", "")
        self._backup = Address("", "")
        self._tasks: asyncio.TaskGroup | None = None
        self.admission = Admission()
        self.plane: TensorPlane | None = None

    # -- the tensor plane asks --------------------------------------------------------------------------------

    async def offer(self, peer_key: bytes, header: Header) -> Accept | Refuse | Already:
        if header.kind not in (Kind.UPDATE, Kind.RELAY):
            return Refuse(f"a shard takes parts of updates, not {header.kind}")
        wrong = self._fence(header)
        if wrong:
            return Refuse(wrong)
        if header.name in self._held:
            return Already(self._held[header.name])
        if header.nbytes != self._part_nbytes:
            return Refuse(f"a part has {self._part_nbytes} bytes here, not {header.nbytes}")
        if len(self._held) >= STAGED_MAX:
            return Refuse(f"{STAGED_MAX} updates are staged already", busy=True)
        return Accept(memoryview(np.empty(header.nbytes, np.uint8).data))

    async def received(self, peer_key: bytes, header: Header, buffer: memoryview) -> bytes:
        if self._fence(header) or header.name in self._held:
            return b""
        try:
            verdict = await self._do(lambda: self._engine.stage(header.name, buffer))
        except FrameError as error:
            raise Refused(str(error)) from error
        self._held[header.name] = b"staged"
        self._payloads[header.name] = np.frombuffer(buffer, np.uint8)
        arrived = PartArrived(self._generation, header.name, verdict.finite, verdict.squared_norm, verdict.nbytes)
        self._link.send(arrived)
        if self._backup.endpoint and header.kind is Kind.UPDATE:
            self._start(self._relay(header.name))
        return b"staged"

    async def asked(self, peer_key: bytes, header: Header) -> Source | Refuse:
        """A worker pulls one version of all blocks of this shard, in rising index; "3/bf16" asks for half the bytes."""
        if header.kind is not Kind.PULL:
            return Refuse(f"a shard gives parameters, not {header.kind}")
        async with self._changed:
            await self._changed.wait_for(lambda: self._fence(header) or self._version >= header.version)
        wrong = self._fence(header)
        if wrong:
            return Refuse(wrong)
        try:
            buffers = await self._do(lambda: self._reader.read(header.version, header.name.endswith("/bf16")))
        except KeyError as error:
            return Refuse(f"gone: {error}")
        return Source(buffers, sum(b.nbytes for b in buffers))

    def _fence(self, header: Header) -> str:
        if header.run != self._opened.job:
            return f"this shard is of job {self._opened.job}, not {header.run}"
        if header.generation != self._generation:
            return f"generation {header.generation} is fenced; this shard is in {self._generation}"
        return "" if self._version >= 0 else "the shard is loading"

    # -- the role commands ------------------------------------------------------------------------------------

    async def execute(self, command: Command) -> None:
        match command:
            case SetPeers(number, keys, vault):
                assert self.plane is not None
                self._vault = vault
                self.admission.admit(keys, self.plane)
                self._link.send(PeersKnown(number))
            case SetRelay(backup):
                self._backup = backup
                if backup.endpoint:
                    for update in list(self._payloads):
                        self._start(self._relay(update))
            case LoadShard(generation, version):
                await self._load(generation, version)
            case Apply():
                await self._apply(command)
            case Discard(updates):
                await self._do(lambda: self._drop(updates))
                self._forget(updates)
            case PinVersion(version):
                await self._do(lambda: self._engine.pin(version))
            case UnpinVersion(version):
                await self._do(lambda: self._engine.unpin(version))
            case WriteVersion(generation, version):
                await self._begin_write(generation, version)
            case _:
                raise AssertionError(f"not a command for a shard: {command}")

    def _drop(self, updates: tuple[str, ...]) -> None:
        for update in updates:
            self._engine.drop(update)

    async def _load(self, generation: int, version: int) -> None:
        assert self.plane is not None
        self._generation, self._version = generation, -1
        self._held.clear()
        self._payloads.clear()
        name = f"part/{version}/{self._opened.shard}"
        try:
            content = await fetch(self.plane, self._vault, self._opened.job, name)
            await self._do(lambda: self._restore(version, content))
        except (Damaged, ValueError) as error:
            self._link.send(Failed("load", str(version), str(error), False, True))
            return
        except MedleyError as error:
            self._link.send(Failed("load", str(version), str(error), False, False))
            return
        await self._reach(version)
        self._link.send(Loaded(generation, version))

    def _restore(self, version: int, content: memoryview) -> None:
        self._reader.forget()
        load_part(self._engine, version, bytes(content))

    async def _apply(self, command: Apply) -> None:
        members = [(m.update, m.weight) for m in command.members]
        try:
            await self._do(lambda: self._engine.apply(command.number, members, command.lr))
        except ValueError as error:
            self._link.send(Failed("apply", str(command.number), str(error), False, True))
            return
        self._forget(tuple(m.update for m in command.members), applied=True)
        self._link.send(AppliedVersion(command.generation, command.number))
        await self._reach(command.number)

    async def _reach(self, version: int) -> None:
        self._version = version
        async with self._changed:
            self._changed.notify_all()

    def _forget(self, updates: tuple[str, ...], *, applied: bool = False) -> None:
        """Free parts. An applied one is still recognised for a while, so that a late retry costs no transfer."""
        for update in updates:
            self._payloads.pop(update, None)
            if applied:
                self._held[update] = b"applied"
            else:
                self._held.pop(update, None)
        while len(self._held) > STAGED_MAX // 2 and (old := next(iter(self._held))) not in self._payloads:
            del self._held[old]

    async def _begin_write(self, generation: int, version: int) -> None:
        """Take the cut now, in order with the commits; write it out beside them."""
        try:
            cut = await self._do(lambda: Cut(self._engine, version))
        except KeyError as error:
            self._link.send(Failed("write", str(version), str(error), False, False))
            return
        self._start(self._write(generation, version, cut))

    async def _write(self, generation: int, version: int, cut: Cut) -> None:
        try:
            with (
                tempfile.TemporaryDirectory(prefix=UNFINISHED, dir=room(), ignore_cleanup_errors=True) as folder,
                await asyncio.to_thread(_written, cut, Path(folder)) as content,
            ):
                kept = await self._deposit(generation, version, content)
        except (MedleyError, OSError) as error:
            reason = f"the disk that holds {room()} is full" if is_full(error) else str(error)
            self._link.send(Failed("write", str(version), reason, False, False))
        else:
            self._link.send(WroteVersion(generation, version, kept.file, kept.sha256, kept.nbytes))

    async def _deposit(self, generation: int, version: int, content: memoryview) -> Part:
        assert self.plane is not None
        header = Header(
            kind=Kind.ARTIFACT,
            run=self._opened.job,
            name=f"part/{version}/{self._opened.shard}",
            generation=generation,
            version=version,
            nbytes=content.nbytes,
            digest=await asyncio.to_thread(xxhash.xxh3_128_digest, content),
        )
        return msgspec.json.decode(await self.plane.put(peer_of(self._vault), header, [content]), type=Part)

    async def _relay(self, update: str) -> None:
        """Pass a part on to the backup; the coordinator waits for the backup's own word."""
        payload = self._payloads.get(update)
        if payload is None or self.plane is None:
            return
        header = Header(
            kind=Kind.RELAY,
            run=self._opened.job,
            name=update,
            generation=self._generation,
            nbytes=payload.nbytes,
        )
        try:
            await self.plane.put(peer_of(self._backup), header, [memoryview(payload.data)])
        except (Refused, Unavailable) as error:
            self._link.send(Failed("relay", update, str(error), False, False))

    async def _do(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _start(self, work: object) -> None:
        assert self._tasks is not None
        self._tasks.create_task(work)  # type: ignore[arg-type]

    async def run(self) -> None:
        """Open the plane, then execute commands for ever."""
        self.plane, address = await open_plane(host(), 0, encrypted(), self, self.admission)
        self._link.send(Opened(address))
        async with TaskGroup() as tasks:
            self._tasks = tasks
            while True:
                await self.execute(await self._link.commands.get())


def _written(cut: Cut, folder: Path) -> AbstractContextManager[memoryview]:
    path = folder / "part.safetensors"
    cut.write(path)
    return mapped(path)


async def serve() -> None:
    link = ChildLink()
    first = await link.commands.get()
    assert isinstance(first, OpenShard)
    await ShardHost(link, first).run()
