"""`medley up`: a coordinator that other machines can join, until Ctrl-C."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import click

from medley.cli.shown import pairs

if TYPE_CHECKING:
    from medley.runtimes.up import UpOptions

EPILOG = """\b
Examples:
  medley up
  medley up --host 0.0.0.0 --no-workers
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
    directory: str | None,
    as_json: bool,
) -> None:
    """Start a coordinator that other machines can join.

    It goes on with whatever its directory holds: after a crash or a restart, jobs resume by themselves. Ctrl-C saves
    everything and stops.
    """
    from medley.jobs.home import coordinator_dir, is_running
    from medley.protocol.errors import UserError
    from medley.runtimes.up import UpOptions

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
        advertised=tuple(advertise) or _reachable(host),
        workers=0 if no_workers else workers,
        announce=not _is_loopback(host),
    )
    asyncio.run(_serve(options, as_json))


async def _serve(options: UpOptions, as_json: bool) -> None:
    from medley.runtimes.lifeline import on_stop
    from medley.runtimes.up import LocalPool

    pool = LocalPool(options)
    on_stop(pool.stop)
    await pool.run(lambda address: _announce(address, options, as_json))
    click.echo("medley: everything is saved; 'medley up' goes on from here", err=True)


def _announce(address: dict[str, object], options: UpOptions, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(address))
        return
    click.echo(f"coordinator up in {options.directory} (Ctrl-C saves and stops)")
    for line in pairs((name, str(address[name])) for name in ("control", "door", "http") if address.get(name)):
        click.echo(f"  {line}")
    if _is_loopback(options.host):
        click.echo("only this machine reaches it; --host 0.0.0.0 lets others in")
    else:
        click.echo("'medley token create' prints the line that lets another machine join")


def _is_loopback(host: str) -> bool:
    import ipaddress

    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def _reachable(host: str) -> tuple[str, ...]:
    """The names that tokens and the certificate carry: the address listened at, or all of this machine."""
    if _is_loopback(host):
        return ()
    if host not in ("0.0.0.0", "::"):
        return (host,)
    from medley.transports.discovery import reachable_addresses

    return tuple(reachable_addresses())
