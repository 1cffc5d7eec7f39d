"""`medley up`: a coordinator that other machines can join, until Ctrl-C."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

import click

EPILOG = """\b
Examples:
  medley up
  medley up --host 0.0.0.0 --no-workers
  medley up --scheduler priority --quota students=4
"""
PORT = click.IntRange(0, 65535)


@click.command("up", epilog=EPILOG)
@click.option(
    "--host", default="0.0.0.0", show_default=True, help="Address to listen at; 127.0.0.1: this machine only."
)
@click.option("--port", type=PORT, default=7070, show_default=True, help="Of the control plane (0 takes a free one).")
@click.option("--door-port", type=PORT, default=7071, show_default=True, help="Where machines join with a token.")
@click.option("--http-port", type=PORT, default=7072, show_default=True, help="Of the page and the metrics.")
@click.option(
    "--advertise", multiple=True, metavar="HOST", help="Name or address that others reach this machine by; repeatable."
)
@click.option("--workers", type=click.IntRange(0, 64), default=1, show_default=True, help="Workers on this machine.")
@click.option("--no-workers", is_flag=True, help="Lend this machine's own processor to nobody.")
@click.option("--network", metavar="PRESET", default="none", help="Emulate a bad link for the workers on this machine.")
@click.option(
    "--scheduler",
    metavar="NAME",
    default="fifo",
    show_default=True,
    help="Who gets which machines; docs/scheduling.md.",
)
@click.option("--quota", "quotas", multiple=True, metavar="QUEUE=MACHINES", help="Limit a queue of jobs; repeatable.")
@click.option("--dir", "directory", metavar="DIR", help="State of the coordinator. Default: ~/.medley/coordinator.")
@click.option("--json", "as_json", is_flag=True, help="Print the addresses as one line of JSON.")
def command(
    host: str,
    port: int,
    door_port: int,
    http_port: int,
    advertise: tuple[str, ...],
    workers: int,
    no_workers: bool,
    network: str,
    scheduler: str,
    quotas: tuple[str, ...],
    directory: str | None,
    as_json: bool,
) -> None:
    """Start a coordinator that other machines can join.

    It goes on with whatever its directory holds: after a crash or a restart, jobs resume by themselves. Ctrl-C saves
    everything and stops.
    """
    from medley.jobs.emulation import network_named
    from medley.jobs.home import coordinator_dir, is_running
    from medley.protocol.errors import UserError
    from medley.protocol.hosts import is_loopback
    from medley.runtimes.up import UpOptions, run_up

    named, limits = _scheduling(scheduler, quotas)
    where = coordinator_dir(directory)
    if is_running(where):
        raise UserError(
            f"a coordinator already runs in {where}: 'medley status' asks it, --dir starts another elsewhere"
        )
    taken = [one for one in (port, door_port, http_port) if one and (port, door_port, http_port).count(one) > 1]
    if taken:
        raise UserError(f"port {taken[0]} is given twice: --port, --door-port and --http-port must differ")
    options = UpOptions(
        directory=where,
        host=host,
        control_port=port,
        door_port=door_port,
        http_port=http_port,
        advertised=tuple(advertise),
        workers=0 if no_workers else workers,
        announce=not is_loopback(host),
        scheduler=named,
        quotas=limits,
        network=network_named(network),
    )
    with _one_sentence():
        if as_json:
            run_up(options, lambda line: click.echo(line, err=True), lambda address: click.echo(json.dumps(address)))
        else:
            run_up(options, click.echo)


def _scheduling(name: str, quotas: tuple[str, ...]) -> tuple[str, dict[str, int]]:
    """Raises UserError for a scheduler that does not exist and for a quota that is none."""
    from medley.policies.scheduling.names import check_quotas, scheduler
    from medley.protocol.errors import UserError

    scheduler(name)
    limits: dict[str, int] = {}
    for word in quotas:
        queue, equals, count = word.partition("=")
        if not (queue and equals and count.isdigit()):
            raise UserError(f"--quota {word}: write QUEUE=MACHINES, such as --quota students=4")
        limits[queue] = int(count)
    check_quotas(limits)
    return name, limits


@contextmanager
def _one_sentence() -> Iterator[None]:
    """A mistake that several tasks ended with is still one mistake; a bug among them keeps its traceback."""
    from medley.protocol.errors import UserError

    try:
        yield
    except ExceptionGroup as group:
        _, bugs = group.split(UserError)
        if bugs is not None:
            raise
        first: BaseException = group
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        raise first from None
