"""Where a transcript of a serving is played: a coordinator without jobs, and machines whose words are written down.

`begin` says that a front wants machines, `suspect w1` and `end` are its words too. What its next question for news
would tell it is shown as `front up w1` and `front gone w1`; `Peers` is shown with its keys. A `PeersSet` acknowledges
the newest list, or with `lists_ago=1` the one before.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tests.scenarios.notation import line, read

from medley.protocol import effects as fx
from medley.protocol import messages as m
from medley.protocol.events import Heard, Lost, Tick
from medley.protocol.hosting import BeginServing, EndServing, FrontAsks, ServingSpec, SuspectStage
from medley.protocol.stages.words import STAGE
from medley.roles.coordinator import Coordinator

JOB = "chat"
S = 1_000_000_000


@dataclass(frozen=True)
class News:
    """What the front would hear."""

    text: str


@dataclass
class ServingStage:
    """Machines w1.. are there; nobody serves yet."""

    options: dict[str, str]
    now: int = S
    term: int = 1
    up: set[str] = field(default_factory=set)
    departures: int = 0
    lists: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.coordinator = Coordinator(self.term)
        for number in range(int(self.options.get("machines", "2"))):
            self.event(["hello", f"w{number + 1}"])

    def settle(self) -> None:
        raise AssertionError("machines of a serving say every word themselves")

    def crash(self, where: str, what: str) -> None:
        raise AssertionError("nothing of a serving is in the log")

    def event(self, words: list[str]) -> list[Any]:
        effects: list[Any] = list(self.coordinator.handle(self._event(words), self.now))
        for effect in effects:
            if isinstance(effect, fx.Send) and isinstance(effect.message, m.Peers):
                self.lists = [*dict.fromkeys([*self.lists, effect.message.number])]
        return [*effects, *self._news()]

    def _event(self, words: list[str]) -> Any:
        match words:
            case ["tick", seconds]:
                self.now += int(float(seconds) * S)
                for view in self.coordinator.pool.values():
                    view.heard_ns = self.now
                return Tick(self.now)
            case ["begin"]:
                return BeginServing(JOB, m.Address("front", "front"), ServingSpec(JOB), 1)
            case ["asks"]:
                return FrontAsks(JOB)
            case ["suspect", node]:
                return SuspectStage(JOB, node, 0, "no answer")
            case ["end"]:
                return EndServing(JOB, "its front end stopped")
            case ["restart"]:
                self.term += 1
                self.coordinator, self.up = Coordinator(self.term), set()
                return Tick(self.now)
            case ["lost", node]:
                return Lost(node, "a")
            case ["hello", node, *rest]:
                stages = (read([*rest, f"shard={STAGE}", "version=-1"], JOB, 1),) if rest else ()
                capability = m.Capability(1, 2**30, "", True, False)
                return Heard(node, m.Hello(node, "a", capability, (), stages))
            case [node, *rest]:
                return Heard(node, self._read(rest))
        raise AssertionError(f"no such event: {words}")

    def _read(self, words: list[str]) -> Any:
        ago = [word for word in words if word.startswith("lists_ago=")]
        words = [*(word for word in words if word not in ago), f"shard={STAGE}"]
        if words[0] == "PeersSet":
            words.append(f"number={self.lists[-1 - int(ago[0].partition('=')[2]) if ago else -1]}")
        return read(words, JOB, 1)

    def _news(self) -> list[News]:
        hosting = self.coordinator.servings.live.get(JOB)
        if hosting is None:
            return []
        found = [News(f"gone {d.node}") for d in list(hosting.gone)[self.departures :]]
        self.departures += len(found)
        self.up -= {news.text.removeprefix("gone ") for news in found}
        now = {stage.node for stage in hosting.stages.values() if stage.since}
        found += [News(f"up {node}") for node in sorted(now - self.up)]
        self.up = now
        return found

    def show(self, effect: Any) -> tuple[str, str] | None:
        match effect:
            case News(text):
                return "front", text
            case fx.Send(node, m.Peers(_, generation, _, _, keys)):
                return node, f"Peers generation={generation} keys=[{' '.join(keys)}]"
            case fx.Send(node, m.Welcome()):
                return None
            case fx.Send(node, message):
                return node, line(message, 0).replace(f" shard={STAGE}", "")
            case fx.Close(node):
                return node, "closed"
            case fx.Explain(_, sentence):
                return "why", sentence
        return None
