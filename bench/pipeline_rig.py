"""A model over stages that are processes of this machine, for benches and tests: build, start, ask, hurt.

The model has random weights of a stated shape and a small tokenizer of its own, so that nothing is downloaded. Answers
come with the time of each token. Works where psutil does.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.killing import processes

from medley.engines.sampling import Sampling
from medley.engines.wording import Request
from medley.protocol.stages.events import Emit, Fail, FrontEvent
from medley.runtimes.local import Pool
from medley.serving.engine import Ticket
from medley.serving.fleet import Served, ServeOptions, open_pipelined
from medley.serving.pipelined import Pipelined
from medley.transports.control.operator import OperatorClient
from medley.transports.identity import Credentials

START_S = 120.0
TEXTS = ("the heart pumps blood", "sleep helps the body heal", "drink water when it is hot", "wash your hands often")

SMALL = {
    "hidden_size": 128,
    "intermediate_size": 344,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 2048,
    "initializer_range": 0.12,
}


def checkpoint(directory: Path, shape: dict[str, Any] | None = None, seed: int = 1) -> Path:
    """A Llama of this shape with random weights (fp32) and a tokenizer, as transformers saves it."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from medley.models.tokenizer import train_tokenizer

    tokenizer = train_tokenizer(TEXTS * 4, 320, directory)
    torch.manual_seed(seed)
    config = LlamaConfig(vocab_size=len(tokenizer), bos_token_id=1, eos_token_id=2, **(shape or SMALL))
    network = LlamaForCausalLM(config).eval()
    network.generation_config.eos_token_id = None  # random weights end where they like; lengths are to be chosen
    network.config.eos_token_id = None
    network.save_pretrained(str(directory), safe_serialization=True)
    return directory


@dataclass(slots=True)
class Told:
    """One answer: its tokens, when each came (seconds of the monotonic clock), and how it ended."""

    tokens: list[int] = field(default_factory=list)
    at_s: list[float] = field(default_factory=list)
    finish: str = ""

    @property
    def pause_s(self) -> float:
        """The longest wait between two tokens."""
        return max((b - a for a, b in zip(self.at_s, self.at_s[1:], strict=False)), default=0.0)


class Rig:
    """A pool of processes and a model over them, for as long as a `with` block lasts."""

    def __init__(self, pool: Pool, served: Served) -> None:
        self.pool, self.engine, self.words = pool, served.engine, served.words
        self.emitted: list[float] = []  # when each token of anybody reached the front
        told = self.engine.host._told

        def tapped(effect: Emit | Fail) -> list[FrontEvent]:
            if isinstance(effect, Emit):
                self.emitted += [time.monotonic()] * len(effect.draws)
            return told(effect)

        self.engine.host._told = tapped

    @property
    def attached(self) -> Attached:
        """For an application that believes that it starts and ends its engine."""
        return Attached(self.engine)

    async def ask(self, prompt: Sequence[int], sampling: Sampling, watch: Any = None) -> Told:
        """One answer; `watch(n)` is called after its n-th token."""
        told = Told()
        async for _, piece in self.engine.submit([Request(tuple(prompt), sampling)]):
            for token in piece.tokens:
                told.tokens.append(token.token)
                told.at_s.append(time.monotonic())
                if watch is not None:
                    watch(len(told.tokens))
            told.finish = piece.finish or told.finish
        return told

    async def alone(self, prompt: Sequence[int], sampling: Sampling) -> list[float]:
        """When each token came at the front, whether or not it has a text; for one stream at a time."""
        self.emitted.clear()
        await self.ask(prompt, sampling)
        return list(self.emitted)

    def note(self) -> dict[str, Any]:
        return self.engine.note()

    def wait(self, condition: Any, what: str, timeout_s: float = START_S) -> None:
        """Until `condition(note)`; an error with what was waited for."""
        import threading

        pause, deadline = threading.Event(), time.monotonic() + timeout_s
        while not condition(note := self.note()):
            if time.monotonic() > deadline:
                last = [f"{said['subject']}: {said['text']}" for said in note["decisions"][-12:]]
                state = {key: note[key] for key in ("serving", "pipelines", "machines")}
                raise TimeoutError(f"{what} did not happen within {timeout_s:g} s: {json.dumps([state, *last])}")
            pause.wait(0.02)

    def wait_serving(self) -> None:
        self.wait(lambda note: note["serving"], "the first layout")

    def wait_reserves(self) -> None:
        """Every hop has a machine in reserve that holds its layers."""
        self.wait(_reserved, "a reserve for every hop")

    def stages(self) -> dict[str, int]:
        """Process ids of the stages' engines, by machine."""
        found = processes(self.pool.pid)
        return {name.removesuffix("-engine"): pid for name, pid in found.items() if name.endswith("-engine")}


@dataclass(frozen=True, slots=True)
class Attached:
    engine: Pipelined

    @property
    def active(self) -> int:
        return self.engine.active

    @property
    def alive(self) -> bool:
        return self.engine.alive

    def start(self) -> None:
        """It runs already."""

    def close(self) -> None:
        """The rig ends it."""

    def submit(self, requests: Sequence[Request]) -> Ticket:
        return self.engine.submit(requests)


def _reserved(note: dict[str, Any]) -> bool:
    if not note["serving"]:
        return False
    machines = {m["name"]: m for m in note["machines"]}
    for pipeline in note["pipelines"]:
        for hop in pipeline["hops"]:
            holder = machines.get(hop["reserve"])
            if holder is None or not set(range(hop["first"], hop["end"])) <= set(holder["layers"]):
                return False
    return True


@contextmanager
def rig(model: Path, directory: Path, stages: int, options: ServeOptions, **pool: Any) -> Iterator[Rig]:
    """`stages` processes, the model over them as `options` say; ready to be asked."""
    with Pool(directory, stages, 0, **pool) as started:
        started.wait_ready()

        def operator() -> OperatorClient:
            return OperatorClient(started.address["control"], Credentials.load(directory / "operator.pem"))

        encrypt = bool(pool.get("encrypt", False))
        served = open_pipelined(str(model), options, "127.0.0.1", encrypt, operator)
        served.engine.start()
        try:
            made = Rig(started, served)
            made.wait_serving()
            yield made
        finally:
            served.engine.close()
