"""Structured logs: JSON lines for machines in a file, short aligned lines for people on stderr.

`configure` is called once at a process's edge; every other module calls `logger(name)` and logs an event word
with fields. Four fields mean the same everywhere: `role`, `node`, `job`, and `cause` (the id of the message
that led here), and `story` can follow a cause through the files of several processes. Values under
secret-sounding keys never reach a line. Rotation is left to the operating system: the file is opened for
appending and each line is one write.
"""

from __future__ import annotations

import atexit
import json
import logging
import re
import sys
import threading
from collections.abc import Iterator, Mapping
from io import FileIO
from pathlib import Path

import structlog
from structlog.typing import EventDict, WrappedLogger

from medley.protocol.errors import UserError, did_you_mean

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
REDACTED = "[redacted]"
# Words of a field's name, cut at "_" and "-". "tokens" is always a count in Medley, so it is not among them.
_SECRET_WORDS = frozenset({"token", "secret", "secrets", "key", "keys", "apikey", "password", "passwords"})
_NOT_SECRET = frozenset({"public_key", "placement_key", "key_id"})
_SEPARATORS = re.compile(r"[_.-]")
_MAX_DEPTH = 6  # a log field nested deeper than this is a mistake, and a cycle must not hang a process


class _Sinks:
    """One process's outputs; `msg` is structlog's name for "write one rendered event"."""

    __slots__ = ("_file", "_lock", "_stderr")

    def __init__(self, file: FileIO | None, stderr: bool) -> None:
        self._file = file
        self._stderr = stderr
        self._lock = threading.Lock()

    def msg(self, event: EventDict) -> None:
        with self._lock:
            if self._file is not None:
                self._append(self._file, json_line(event) + "\n")
            if self._stderr:
                print(human_line(event), file=sys.stderr, flush=True)

    debug = info = warning = error = critical = msg

    def _append(self, file: FileIO, line: str) -> None:
        try:
            file.write(line.encode("utf-8", errors="replace"))
        except OSError as refused:  # a full disk costs the log, never the process
            file.close()
            self._file, self._stderr = None, True
            print(f"{file.name}: {refused.strerror}; logging goes on here", file=sys.stderr, flush=True)

    def close(self) -> None:
        with self._lock:
            if self._file is not None:
                self._file.close()
            self._file = None


_current: _Sinks | None = None


@atexit.register
def close() -> None:
    """Close the log file; later lines still reach stderr. Runs by itself when the process ends."""
    if _current is not None:
        _current.close()


def configure(process: str, level: str = "info", path: Path | None = None, *, stderr: bool = True) -> None:
    """Send this process's logs to `path` (JSON lines, appended) and, unless `stderr` is False, to stderr.

    `process` names the process in every line. Calling it again replaces the outputs. Raises UserError for a
    level that does not exist or a file that cannot be written.
    """
    global _current
    if level not in LEVELS:
        raise UserError(f"no log level '{level}': {did_you_mean(level, LEVELS)}")
    sinks = _Sinks(None if path is None else _open(path), stderr)
    close()
    _current = sinks
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="at"),
            structlog.processors.format_exc_info,
            _name_process(process),
            redact,
            _wrap,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        logger_factory=lambda *_: sinks,
        cache_logger_on_first_use=False,
    )


def logger(name: str, **fields: object) -> structlog.typing.FilteringBoundLogger:
    """A logger that adds `source=name` and `fields` (role, node, job, cause, ...) to each line it writes."""
    if not structlog.is_configured():
        configure("medley", "warning")  # structlog's own default would write to stdout, which belongs to results
    bound: structlog.typing.FilteringBoundLogger = structlog.get_logger(source=name, **fields)
    return bound


def bind(**fields: object) -> None:
    """Add fields to every later line of this thread or asyncio task, whoever writes it."""
    structlog.contextvars.bind_contextvars(**fields)


def story(paths: list[Path], cause: str) -> Iterator[dict[str, object]]:
    """The lines of several JSON-lines files that carry this causal id, oldest first."""
    found = [line for path in paths for line in _lines(path) if line.get("cause") == cause]
    yield from sorted(found, key=lambda line: str(line.get("at", "")))


def redact(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """A structlog processor: values under keys that sound secret are replaced, at any depth."""
    return {key: _clean(key, value, _MAX_DEPTH) for key, value in event.items()}


def json_line(event: Mapping[str, object]) -> str:
    """One event as one line of JSON; what JSON has no word for is written as text."""
    return json.dumps(event, default=str, ensure_ascii=False)


def human_line(event: Mapping[str, object]) -> str:
    """`12:30:01 info  worker-2  lease granted  range=0-64 job=j1`: what a person wants to see, in reading
    order.
    """
    rest = [f"{key}={_short(value)}" for key, value in event.items() if key not in _LEADING]
    at, level = str(event.get("at", ""))[11:19], str(event.get("level", ""))
    who = str(event.get("role") or event.get("process", ""))
    return f"{at} {level:<7} {who:<12} {event.get('event', '')}  {' '.join(rest)}".rstrip()


_LEADING = frozenset({"at", "level", "process", "role", "event", "source"})


def _open(path: Path) -> FileIO:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("ab", buffering=0)
    except OSError as refused:
        raise UserError(f"cannot write the log file {path}: {refused.strerror}") from refused


def _name_process(process: str) -> structlog.typing.Processor:
    def add(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
        event["process"] = process
        return event

    return add


def _wrap(_: WrappedLogger, __: str, event: EventDict) -> tuple[tuple[EventDict], dict[str, object]]:
    return (event,), {}


def _clean(key: str, value: object, depth: int) -> object:
    if _is_secret(key):
        return REDACTED
    if depth == 0:
        return "..."
    match value:
        case Mapping():
            return {str(inner): _clean(str(inner), item, depth - 1) for inner, item in value.items()}
        case list() | tuple():
            return [_clean("", item, depth - 1) for item in value]
        case _:
            return value


def _is_secret(key: str) -> bool:
    lowered = key.lower()
    return lowered not in _NOT_SECRET and not _SECRET_WORDS.isdisjoint(_SEPARATORS.split(lowered))


def _short(value: object) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return json.dumps(text, ensure_ascii=False) if " " in text or "\n" in text else text


def _lines(path: Path) -> Iterator[dict[str, object]]:
    with path.open(encoding="utf-8") as file:
        for line in file:
            try:
                yield json.loads(line)
            except json.JSONDecodeError:
                continue  # the last line of a process that was killed while writing it
