"""`medley replay`: the story of a simulated run, one line an event, or the part of it that somebody asks for."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING

import click

from medley.protocol.errors import UserError
from medley.protocol.ids import NS_PER_S

if TYPE_CHECKING:
    from medley.runtimes.simulated.trace import Line

EPILOG = """\b
Examples:
  medley replay seed-17.trace
  medley replay seed-17.trace --node n2 --from 12.5 --to 14
  medley replay seed-17.trace --kind Lease --job j
  medley replay seed-17.trace --grep 'Persist Placed'
  medley replay seed-17.trace --cause 4711
"""
Wanted = Callable[["Line"], bool]


@click.command("replay", epilog=EPILOG)
@click.argument("trace", metavar="TRACE", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--node", multiple=True, metavar="NAME", help="Only what this machine did, heard or said; repeatable.")
@click.option("--job", metavar="JOB", help="Only what concerns this job.")
@click.option("--kind", multiple=True, metavar="KIND", help="Only events of this kind, such as Lease; repeatable.")
@click.option("--from", "from_s", type=float, metavar="S", help="Only from this virtual second on.")
@click.option("--to", "to_s", type=float, metavar="S", help="Only up to this virtual second.")
@click.option("--grep", metavar="PATTERN", help="Only lines that this regular expression matches.")
@click.option("--cause", type=click.IntRange(min=1), metavar="N", help="Only what led to event N, from the beginning.")
def command(
    trace: Path,
    node: tuple[str, ...],
    job: str | None,
    kind: tuple[str, ...],
    from_s: float | None,
    to_s: float | None,
    grep: str | None,
    cause: int | None,
) -> None:
    """Show the events of a trace, one aligned line each.

    A line reads: virtual time, the event's number, the number of the event that caused it, who handled it, the job and
    shard (w: the worker), the kind of event, what it said, and after => what was wanted of the host.

    TRACE is a file that `medley simulate --check --trace FILE` wrote.
    """
    from medley.runtimes.simulated.trace import read_trace

    filters = [*_places(node, job, kind), *_times(from_s, to_s), *_pattern(grep)]
    lines: Iterator[Line] = read_trace(trace, lambda sentence: click.echo(sentence, err=True))
    if cause is not None:
        lines = iter(_chain(list(lines), cause, trace))
    shown = 0
    for line in lines:
        if all(wanted(line) for wanted in filters):
            click.echo(line.text)
            shown += 1
    if not shown:
        click.echo(f"no event of {trace} is like that", err=True)


def _places(node: tuple[str, ...], job: str | None, kind: tuple[str, ...]) -> Iterator[Wanted]:
    if node:
        yield lambda line: line.who in node or any(_concerns(line, name) for name in node)
    if job is not None:
        yield lambda line: line.job.split("/", 1)[0] == job
    if kind:
        kinds = {name.lower() for name in kind}
        yield lambda line: line.kind.lower() in kinds


def _concerns(line: Line, name: str) -> bool:
    """What the coordinator heard from a machine, or sent it."""
    return line.what.startswith(f"from {name}: ") or f"Send {name} " in line.effects


def _times(from_s: float | None, to_s: float | None) -> Iterator[Wanted]:
    for option, value in (("--from", from_s), ("--to", to_s)):
        if value is not None and not isfinite(value):
            raise UserError(f"{option} {value:g} is no time: give seconds, such as 12.5")
    if from_s is not None and to_s is not None and from_s > to_s:
        raise UserError(f"--from {from_s:g} is later than --to {to_s:g}: nothing lies between them")
    if from_s is not None:
        first_ns = int(from_s * NS_PER_S)
        yield lambda line: line.time_ns >= first_ns
    if to_s is not None:
        last_ns = int(to_s * NS_PER_S)
        yield lambda line: line.time_ns <= last_ns


def _pattern(grep: str | None) -> Iterator[Wanted]:
    if grep is None:
        return
    try:
        pattern = re.compile(grep)
    except re.error as error:
        raise UserError(f"--grep {grep!r} is not a regular expression: {error}") from None
    yield lambda line: pattern.search(line.text) is not None


def _chain(lines: list[Line], number: int, trace: Path) -> list[Line]:
    """An event and all that led to it, oldest first."""
    known = {line.number: line for line in lines}
    if number not in known:
        raise UserError(f"{trace} has no event {number}: its numbers go from 1 to {max(known, default=0)}")
    found = []
    line: Line | None = known[number]
    while line is not None:
        found.append(line)
        line = known.get(line.cause) if line.cause < line.number else None  # a cause is always older
    return found[::-1]
