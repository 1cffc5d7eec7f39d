"""Real stage processes, and a front that a test plays by hand: it posts words and sees what comes back."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from tests.waiting import until_async

from medley.engines.stage_wire import encode_tokens
from medley.models.described import fingerprint
from medley.models.weightfiles import WeightFiles, directory_files
from medley.protocol.engine import EngineExited, Opened, OpenStage, PeersKnown, Report, SetPeers
from medley.protocol.messages import Address
from medley.protocol.stages.words import (
    AskHeld,
    Drawn,
    Held,
    Hop,
    Layout,
    Load,
    Loaded,
    Opening,
    Pass,
    Row,
    WireType,
    Word,
    pack,
    unpack,
)
from medley.runtimes.children.plane import Admission, open_plane, peer_of
from medley.runtimes.process import EngineProcess
from medley.transports.tensors.contract import Keeper
from medley.transports.tensors.plane import TensorPlane

W = TypeVar("W")
DEADLINE_S = 200.0  # of which most is for importing torch on a busy machine
KV_NBYTES = 1 << 24


def model_json(directory: Path, path: str, dtype: str = "fp32", weights: str = "none") -> str:
    """As a front describes it; `path` is where stages may find the files."""
    files = WeightFiles.open(directory_files(directory))
    config = json.loads((directory / "config.json").read_text())
    what = {"name": "tiny", "fingerprint": fingerprint(files), "config": config}
    return json.dumps(what | {"weights": weights, "dtype": dtype, "path": path})


@dataclass
class Child:
    """A stage process as its node's parent sees it."""

    name: str
    process: EngineProcess = field(init=False)
    reports: list[Report] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.process = EngineProcess("stage", self.reports.append, {"OMP_NUM_THREADS": "1", **self.environment})

    @property
    def address(self) -> Address:
        return next(r.address for r in self.reports if isinstance(r, Opened))

    @property
    def exited(self) -> EngineExited | None:
        return next((r for r in self.reports if isinstance(r, EngineExited)), None)

    async def saw(self, kind: type[Any]) -> None:
        await until_async(
            lambda: any(isinstance(r, kind) for r in self.reports), deadline_s=DEADLINE_S, what=f"{kind} of {self.name}"
        )


class HandFront:
    """`heard` is every word that came, in order."""

    def __init__(self, plane: TensorPlane, address: Address, admission: Admission) -> None:
        self.plane, self.address, self.admission = plane, address, admission
        self.heard: list[Any] = []
        self.children: list[Child] = []
        self.hops: tuple[Hop, ...] = ()
        self.generation = 0
        self._number = 0

    @classmethod
    async def open(cls, keeper: Keeper) -> HandFront:
        admission = Admission()
        made: list[HandFront] = []
        plane, address = await open_plane(
            "127.0.0.1", 0, True, keeper, admission, posted=lambda key, post: made[0]._posted(post)
        )
        made.append(cls(plane, address, admission))
        return made[0]

    def _posted(self, payload: memoryview) -> None:
        self.heard.append(unpack(payload)[0])

    def post(self, to: Address, word: Word, body: Sequence[Any] = ()) -> None:
        assert self.plane.post(peer_of(to), [pack(word), *body])

    def raw(self, to: Address, post: bytes) -> None:
        assert self.plane.post(peer_of(to), [post])

    async def meet(self, children: list[Child]) -> None:
        """Everybody listens, and admits everybody else."""
        self.children = children
        for child in children:
            child.process.say(OpenStage("serving", 1, child.name, 1))
        for child in children:
            await child.saw(Opened)
        keys = tuple(key for key in [self.address.key, *(c.address.key for c in children)] if key)
        self.admission.admit(keys, self.plane)
        for child in children:
            child.process.say(SetPeers(1, keys, self.address))
        for child in children:
            await child.saw(PeersKnown)

    async def load(self, child: Child, model: str, first: int, end: int, kv_nbytes: int = KV_NBYTES) -> Any:
        number = self.number()
        self.post(child.address, Load(number, model, first, end, kv_nbytes))
        return await self.answer(Loaded, lambda w: w.number == number)

    def lay_out(self, spans: Sequence[tuple[Child, int, int]], wire: WireType = "fp32") -> Layout:
        self.generation += 1
        self.hops = tuple(
            Hop(place, child.name, child.address, first, end) for place, (child, first, end) in enumerate(spans)
        )
        word = Layout(self.generation, self.hops, self.address, wire)
        for address in {hop.address for hop in self.hops}:
            self.post(address, word)
        return word

    def send(
        self, rows: Sequence[Row], tokens: Sequence[int], opens: Sequence[int | Opening] = (), frees: Sequence[int] = ()
    ) -> int:
        number = self.number()
        word = Pass(self.generation, number, 0, tuple(rows), tuple(map(opening, opens)), tuple(frees), "tokens", 0, ())
        self.post(self.hops[0].address, word, encode_tokens(list(tokens)))
        return number

    async def passed(self, *args: Any, **named: Any) -> Drawn:
        number = self.send(*args, **named)
        return await self.answer(Drawn, lambda w: w.batch == number)

    async def generate(self, request: int, prompt: list[int], count: int) -> list[int]:
        """Greedy, one token after another."""
        drawn = await self.passed([Row(request, 0, len(prompt), 1)], prompt, [request])
        out = [drawn.draws[0].token]
        while len(out) < count:
            position = len(prompt) + len(out) - 1
            drawn = await self.passed([Row(request, position, 1, 1)], [out[-1]])
            out.append(drawn.draws[0].token)
        return out

    async def held(self, child: Child, first: int, end: int) -> dict[int, int]:
        number = self.number()
        generation = self.generation if child.address in [hop.address for hop in self.hops] else 0
        self.post(child.address, AskHeld(number, generation, first, end))
        word = await self.answer(Held, lambda w: w.number == number)
        return {p.request: p.held for p in word.positions}

    async def answer(self, kind: type[W], which: Callable[[W], bool] = lambda word: True) -> W:
        def found() -> W | None:
            return next((w for w in list(self.heard) if isinstance(w, kind) and which(w)), None)

        await until_async(found, deadline_s=DEADLINE_S, what=f"{kind.__name__}, after {self.heard[-3:]}")
        word = found()
        assert word is not None
        return word

    def number(self) -> int:
        self._number += 1
        return self._number


def opening(one: int | Opening) -> Opening:
    return one if isinstance(one, Opening) else Opening(one, 0.0, 1.0, 0, 0, 0, -1, 0, 0)
