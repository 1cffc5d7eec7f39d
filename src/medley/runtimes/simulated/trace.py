"""The story of a world: one aligned line an event, and a digest over everything that was decided, sent and written.

The digest is always taken: two runs of one seed that differ anywhere differ in it. Lines are written only where
somebody asked for a file. A line names the event's number and the number of the event that led to it, so that a chain
of causes can be followed backwards: `time #number <cause who job kind | what => effects`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, TextIO

from medley.protocol import effects as fx
from medley.protocol import events as ev
from medley.protocol.errors import UserError
from medley.protocol.ids import NS_PER_S

FIRST_LINE = "medley trace 1"
_FOLD = 4096  # pieces that wait to be hashed together
_WIDTH = 240  # of what happened, and of its effects
_LINE = re.compile(
    r"(?P<time>\s*\d+\.\d{9})\s+#(?P<number>\d+)\s+<(?P<cause>\d+)\s+(?P<who>\S+)\s+(?P<job>\S+)\s+"
    r"(?P<kind>\S+)\s+\| (?P<what>.*?)(?: => (?P<effects>.*))?$"
)


class Trace:
    """Takes the digest, and writes lines to a file if there is one."""

    def __init__(self, path: Path | None = None, *, title: str = "") -> None:
        self.events = 0
        self.lines: Callable[[str], None] | None = None
        self._hash = blake2b(digest_size=16)
        self._waiting: list[bytes] = []
        self._file: TextIO | None = None
        if path is not None:
            self._file = path.open("w", encoding="utf-8")
            self._file.write(f"{FIRST_LINE} {title}".rstrip() + "\n")
            self.lines = self._write

    def mix(self, data: bytes) -> None:
        """Something that must be the same in every run of this seed."""
        self._waiting.append(data)
        if len(self._waiting) >= _FOLD:
            self._fold()

    def handled(self, at_ns: int, who: str, event: object, effects: int) -> int:
        """A role handled an event, with so many effects; its number, by which others may name it as their cause."""
        self.events = number = self.events + 1
        # Folded with the next message or note: this is the most frequent piece of all.
        self._waiting.append(f"{at_ns} {who} {type(_inner(event)).__name__} {effects}\n".encode())
        return number

    def line(self, at_ns: int, cause: int, who: str, job: str, event: object, effects: Sequence[fx.Effect]) -> None:
        """Write the event that `handled` counted last."""
        if self.lines is not None:
            inner = _inner(event)
            kind = type(inner).__name__
            what = f"from {event.node}: {brief(inner)}" if isinstance(event, ev.Heard) else brief(inner)
            self._say(at_ns, self.events, cause, who, job, kind, what, ", ".join(map(_effect, effects)))

    def note(self, at_ns: int, cause: int, who: str, kind: str, what: str) -> None:
        """Something that happened to a world rather than to a role: a death, a fault, a link that broke."""
        self.events += 1
        self.mix(f"{at_ns} {who} {kind} {what}\n".encode())
        if self.lines is not None:
            self._say(at_ns, self.events, cause, who, "-", kind, what, "")

    def _say(self, at_ns: int, number: int, cause: int, who: str, job: str, kind: str, what: str, effects: str) -> None:
        seconds, rest = divmod(at_ns, NS_PER_S)
        head = f"{seconds:6}.{rest:09} #{number:<7} <{cause:<7} {who:12} {job or '-':8} {kind:14}"
        assert self.lines is not None
        self.lines(f"{head} | {_short(what)}" + (f" => {_short(effects)}" if effects else ""))

    def _write(self, line: str) -> None:
        assert self._file is not None
        self._file.write(line + "\n")

    def digest(self) -> str:
        """Of everything so far, as hexadecimal digits."""
        self._fold()
        return self._hash.hexdigest()

    def close(self) -> None:
        """The last line is the digest."""
        if self._file is not None:
            self._file.write(f"digest {self.digest()}\n")
            self._file.close()
            self._file, self.lines = None, None

    def _fold(self) -> None:
        self._hash.update(b"".join(self._waiting))
        self._waiting.clear()


# -- in short -----------------------------------------------------------------------------------------------------


def brief(value: Any) -> str:
    """`Lease(lease=4, span=0:3-5)`: without the job and generation that the line has anyway, long texts cut."""
    fields = getattr(type(value), "__dataclass_fields__", None)
    if fields is None:
        return str(value)
    said = [f"{name}={_value(getattr(value, name))}" for name in fields if name not in ("job", "generation", "node")]
    return ", ".join(said)


def _value(value: Any) -> str:
    fields = getattr(type(value), "__dataclass_fields__", None)
    if fields is not None:
        if tuple(fields) == ("epoch", "start", "stop"):
            return f"{value.epoch}:{value.start}-{value.stop}"
        return f"({brief(value)})"
    if isinstance(value, tuple):
        shown = " ".join(_value(one) for one in value[:8])
        return f"[{shown}{' ...' if len(value) > 8 else ''}]"
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    text = text if len(text) <= 60 else text[:57] + "..."
    return text.replace("\n", " ")


def _effect(effect: fx.Effect) -> str:
    match effect:
        case fx.Persist(_, record) | fx.Compact(_, record):
            return f"{type(effect).__name__} {type(record).__name__}({_short(brief(record), 80)})"
        case fx.Send(node, message):
            return f"Send {node} {type(message).__name__}"
        case fx.Report(message):
            return f"Report {type(message).__name__}"
        case fx.Run(command):
            return f"Run {type(command).__name__}"
        case fx.Explain(_, text):
            return f"Explain '{_short(text, 80)}'"
        case _:
            return brief(effect)


def _short(text: str, width: int = _WIDTH) -> str:
    return text if len(text) <= width else text[: width - 3] + "..."


def _inner(event: object) -> object:
    kind = type(event)
    if kind is ev.Heard or kind is ev.Told:
        return event.message  # type: ignore[attr-defined]
    return event.report if kind is ev.EngineSaid else event  # type: ignore[attr-defined]


# -- reading ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a trace, taken apart."""

    time_ns: int
    number: int
    cause: int
    who: str
    job: str
    kind: str
    what: str
    effects: str
    text: str


def read_trace(path: Path, cut: Callable[[str], None] = lambda sentence: None) -> Iterator[Line]:
    """The events of a trace file, in order; `cut` is told of one that ends too early. Raises UserError for a file that
    is none.
    """
    try:
        with path.open(encoding="utf-8") as file:
            if not file.readline().startswith(FIRST_LINE):
                raise UserError(f"{path} is not a trace: its first line should begin with '{FIRST_LINE}'")
            text = ""
            for number, line in enumerate(file, start=2):
                text = line.rstrip("\n")
                if text and not text.startswith("digest ") and line.endswith("\n"):
                    yield _parsed(path, number, text)
            if not text.startswith("digest "):
                cut(f"{path} ends before its digest: the file was cut off, or its run was")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the trace {path} cannot be read: {error}") from None


def _parsed(path: Path, number: int, text: str) -> Line:
    found = _LINE.match(text)
    if found is None:
        raise UserError(f"line {number} of {path} is not a line of a trace: {text[:60]!r}")
    seconds, _, rest = found["time"].strip().partition(".")
    return Line(
        int(seconds) * NS_PER_S + int(rest),
        int(found["number"]),
        int(found["cause"]),
        found["who"],
        found["job"],
        found["kind"],
        found["what"],
        found["effects"] or "",
        text,
    )
