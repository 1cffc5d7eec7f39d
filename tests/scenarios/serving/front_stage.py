"""A front on the stage of a transcript: its machines answer what a line says, and numbers are told in order of coming.

Batches are b1, b2, ... and layouts g1, g2, ... as they appear. A row is `request@start+count`, with `:samples` where it
draws; a guess is `request@position+count`. `given front` plays the opening: machines come, load what is pinned, and the
first layout begins.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from medley.policies.pipeline.describe import Link, Links, ModelShape, Wanted
from medley.protocol.ids import NS_PER_MS, NS_PER_S
from medley.protocol.messages import Address
from medley.protocol.stages import events as ev
from medley.protocol.stages import words as w
from medley.roles.front.front import Front
from medley.roles.front.planning import FrontOptions

LAYERS = 6
SHAPE = ModelShape("toy", LAYERS, 1 << 20, 1 << 20, 1 << 20, 64, 64)


@dataclass
class FrontStage:
    front: Front
    now_ns: int = 0

    def __post_init__(self) -> None:
        self.addresses: dict[str, Address] = {}
        self.lives: dict[str, int] = {}
        self.batches: dict[str, w.Pass] = {}
        self.layouts: dict[int, str] = {}
        self.asked: dict[tuple[str, int, int], w.AskHeld] = {}
        self.loads: dict[tuple[str, int, int], w.Load] = {}
        self.probe: w.Probe | None = None

    # -- lines in -----------------------------------------------------------------------------------------------------

    def event(self, words: list[str]) -> list[Any]:
        who, *rest = words
        return self.front.handle(self._read(who, rest), self.now_ns)

    def _read(self, who: str, rest: list[str]) -> Any:
        match who:
            case "tick":
                self.now_ns += int(float(rest[0]) * NS_PER_S) if rest else 0
                return ev.Tick()
            case "up":
                self.lives[rest[0]] = self.lives.get(rest[0], 0) + 1
                self.addresses[rest[0]] = Address(f"{rest[0]}#{self.lives[rest[0]]}", rest[0])
                return ev.MachineUp(rest[0], self.addresses[rest[0]])
            case "down":
                return ev.MachineDown(rest[0], " ".join(rest[1:]))
            case "asked":
                options = dict(word.split("=") for word in rest[2:])
                prompt, draft = numbers(rest[1]), options.get("draft") == "yes"
                return ev.Asked(int(rest[0]), prompt, int(options["limit"]), frozenset({0}), draft=draft)
            case "gone":
                return ev.Gone(int(rest[0]))
            case "guessed":
                request, _, position = rest[0].partition("@")
                spent_ns = int(float(rest[2].removeprefix("ms=")) * NS_PER_MS) if rest[2:] else 0
                return ev.Guessed(int(request), int(position), numbers(rest[1]), spent_ns)
            case "guesses":
                return ev.GuessesEnd(" ".join(rest[1:]))
            case _:
                return ev.Heard(who, self._word(who, rest))

    def _word(self, who: str, rest: list[str]) -> Any:
        kind, *rest = rest
        match kind:
            case "Drawn":
                return self._drawn(self.batches[rest[0]], dict(word.split(":") for word in rest[1:]))
            case "Held":
                asked = self.asked[who, *span(rest[0])]
                held = (w.Position(int(r), int(n)) for r, n in (word.split("=") for word in rest[1:]))
                return w.Held(asked.number, asked.generation, tuple(held))
            case "Loaded":
                load = self.loads[who, *span(rest[0])]
                return w.Loaded(load.number, load.first, load.end, 1 << 20, 1.0)
            case "Alive":
                assert self.probe is not None
                places = [hop.place for hop in self.front.pipelines[0].hops if hop.node == who]
                return w.Alive(self.probe.generation, self.probe.number, places[0], 0)
        raise AssertionError(f"nothing is called {kind}")

    def _drawn(self, batch: w.Pass, tokens: dict[str, str]) -> w.Drawn:
        draws: list[w.Draw] = []
        for row in batch.rows:
            first = row.start + row.count - row.samples + 1
            told = numbers(tokens.get(str(row.request), "[]"))
            assert len(told) == row.samples, f"{row} draws {row.samples} tokens"
            draws += [w.Draw(row.request, first + i, token, 0.0, ()) for i, token in enumerate(told)]
        spent = tuple(1_000_000 for _ in self.front.pipelines[0].hops)
        return w.Drawn(batch.generation, batch.batch, tuple(draws), spent)

    # -- lines out ----------------------------------------------------------------------------------------------------

    def show(self, effect: Any) -> tuple[str, str]:
        match effect:
            case ev.Post(to, word, body):
                return to.key, self._said(to.key, word, body)
            case ev.Emit(request, draws, finish):
                text = f"hears [{' '.join(str(d.token) for d in draws)}]"
                return f"client{request}", f"{text} {finish}".rstrip()
            case ev.Fail(request, reason):
                return f"client{request}", f"fails: {reason}"
            case ev.Suspect(node, _):
                return "coordinator", f"Suspect {node}"
            case ev.Guess(opening, tokens, count):
                return "guesser", f"Guess {opening.request}@{len(tokens)}+{count}"
            case ev.Explain(subject, text):
                return "why", f"{subject}: {text}"
        raise AssertionError(f"{effect} has no line")

    def _said(self, to: str, word: Any, body: Any) -> str:
        match word:
            case w.Pass():
                name = f"b{len(self.batches) + 1}"
                self.batches[name] = word
                rows = " ".join(map(row_text, word.rows))
                opens = f" opens={listed(o.request for o in word.opens)}" if word.opens else ""
                frees = f" frees={listed(word.frees)}" if word.frees else ""
                return f"Pass {name} {rows} {listed(body)}{opens}{frees}"
            case w.Layout(generation, hops):
                name = self.layouts.setdefault(generation, f"g{len(self.layouts) + 1}")
                return f"Layout {name} " + " ".join(f"{h.node}={h.first}-{h.end - 1}" for h in hops)
            case w.AskHeld():
                self.asked[to, word.first, word.end] = word
                return f"AskHeld {word.first}-{word.end - 1}"
            case w.Load():
                self.loads[to, word.first, word.end] = word
                return f"Load {word.first}-{word.end - 1}"
            case w.Replicate():
                return f"Replicate {word.first}-{word.end - 1}" + (f" to {word.node}" if word.node else " ends")
            case w.Free(requests):
                return f"Free {listed(requests)}"
            case w.Probe():
                self.probe = word
                return "Probe"
        return type(word).__name__


def open_front(options: dict[str, str]) -> FrontStage:
    machines, pins = options["machines"].split("+"), options["pins"].replace(":", "=").replace("+", ",")
    given = FrontOptions(
        "{}",
        SHAPE,
        Wanted(kv_tokens=4096),
        Address("front", "front"),
        Links(Link(0.001, 1e9)),
        pins=pins,
        survive=int(options.get("survive", "0")),
        expected=len(machines),
        guesses=options.get("guesses") == "yes",
    )
    stage = FrontStage(Front(given))
    waiting = [effect for name in machines for effect in stage.event(["up", name])]
    for _ in range(4):  # load, begin, and where one is wanted the reserve
        waiting += stage.event(["tick", "1"])
        while waiting:
            waiting = [later for effect in waiting for later in _answered(stage, effect)]
    assert stage.front.serving
    stage.batches.clear()
    stage.layouts.clear()
    return stage


def _answered(stage: FrontStage, effect: Any) -> list[Any]:
    """What a machine that has nothing yet answers."""
    if not isinstance(effect, ev.Post):
        return []
    stage.show(effect)
    who, word = effect.to.key, effect.word
    if isinstance(word, w.Load):
        return stage.event([who, "Loaded", f"{word.first}-{word.end - 1}"])
    if isinstance(word, w.AskHeld):
        return stage.event([who, "Held", f"{word.first}-{word.end - 1}"])
    return []


def row_text(row: w.Row) -> str:
    return f"{row.request}@{row.start}+{row.count}" + (f":{row.samples}" if row.samples else "")


def listed(items: Any) -> str:
    return "[" + " ".join(str(item) for item in items) + "]"


def numbers(text: str) -> tuple[int, ...]:
    return tuple(int(word) for word in text.strip("[]").split())


def span(text: str) -> tuple[int, int]:
    first, _, last = text.partition("-")
    return int(first), int(last) + 1
