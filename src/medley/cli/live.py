"""A running job in the terminal: one line that moves where there is a terminal, one line a step where there is none."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import click

from medley.cli.shown import count, duration, figure, percent

if TYPE_CHECKING:
    from rich.status import Status

    from medley.jobs.progress import Progress

# Without a terminal: so many commits share one line.
PLAIN_EVERY = 10


class Live:
    """Shows a Progress that somebody else keeps up to date; `with` holds the terminal."""

    def __init__(self, progress: Progress, to_stderr: bool = False) -> None:
        self._progress = progress
        self._to_stderr = to_stderr
        self._status: Status | None = None

    def __enter__(self) -> Self:
        stream = sys.stderr if self._to_stderr else sys.stdout
        if stream.isatty():
            from rich.console import Console
            from rich.status import Status
            from rich.text import Text

            self._status = Status(Text(line(self._progress)), console=Console(file=stream))
            self._status.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._status is not None:
            self._status.stop()
            self._status = None
            click.echo(line(self._progress), err=self._to_stderr)

    def show(self, event: dict[str, Any]) -> None:
        """After an event was noted. Decisions scroll by above the line."""
        self.refresh()
        match event:
            case {"kind": "decision", "subject": subject, "text": text}:
                self._print(f"  {subject}: {text}")
            case {"kind": "state", "state": state, "reason": reason}:
                self._print(f"  {state}{f': {reason}' if reason else ''}")
            case {"kind": "commit", "version": version} if self._status is None and version % PLAIN_EVERY:
                pass
            case {"kind": "commit" | "heldout"} if self._status is None:
                self._print(line(self._progress))
            case _:
                pass

    def refresh(self) -> None:
        if self._status is not None:
            from rich.text import Text

            self._status.update(Text(line(self._progress)))

    def _print(self, text: str) -> None:
        if self._status is not None:
            # Not as markup: a reason may hold brackets.
            self._status.console.print(text, markup=False, highlight=False)
        else:
            click.echo(text, err=self._to_stderr)


def line(progress: Progress) -> str:
    """The figures of one moment."""
    if progress.state in ("queued", "preparing", "") or not progress.total:
        return f"{progress.name}: {progress.state or 'starting'}" + (f", {progress.reason}" if progress.reason else "")
    figures = [
        f"{progress.name} {percent(progress.fraction)}",
        f"{progress.samples}/{progress.total} samples",
        f"loss {figure(progress.loss)}",
    ]
    if progress.heldout_loss is not None:
        figures.append(f"held-out {figure(progress.heldout_loss)} ({percent(progress.accuracy)} right)")
    figures.append(f"{count(progress.tokens_per_s)} tokens/s")
    if progress.left_s is not None and progress.state == "running":
        figures.append(f"{duration(progress.left_s)} left")
    return " | ".join(figures)
