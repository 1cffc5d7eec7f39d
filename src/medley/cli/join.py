"""`medley join`: lend this machine to a coordinator, until Ctrl-C."""

from __future__ import annotations

import json
import socket

import click

EPILOG = """\b
Examples:
  medley join --token medley1.AbC...
  medley join 192.168.1.20:7071 --token medley1.AbC... --name lab-3
  medley join
  medley join --transport grpc
"""
TRANSPORTS = ("auto", "direct", "grpc")


@click.command("join", epilog=EPILOG)
@click.argument("address", required=False)
@click.option("--token", envvar="MEDLEY_TOKEN", help="From 'medley token create'; only needed the first time.")
@click.option("--name", help="What to call this machine. Default: its host name.")
@click.option("--no-worker", is_flag=True, help="Compute nothing here; keep parameters only.")
@click.option("--no-shard", is_flag=True, help="Keep no parameters here; compute only.")
@click.option("--allow-code", is_flag=True, help="Let jobs run task code that is installed on this machine.")
@click.option(
    "--transport",
    type=click.Choice(TRANSPORTS),
    default="auto",
    show_default=True,
    help="How tensors travel: directly where that works, only directly, or all through the coordinator's gRPC port.",
)
@click.option(
    "--network", metavar="PRESET", default="none", help="Emulate a bad link between this machine and all others."
)
@click.option("--dir", "directory", metavar="DIR", help="State of this machine as a member. Default: ~/.medley/node.")
@click.option("--json", "as_json", is_flag=True, help="Print what happens as one JSON object a line.")
def command(
    address: str | None,
    token: str | None,
    name: str | None,
    no_worker: bool,
    no_shard: bool,
    allow_code: bool,
    transport: str,
    network: str,
    directory: str | None,
    as_json: bool,
) -> None:
    """Lend this machine to a coordinator.

    ADDRESS is host:port of the coordinator's door. Without it, the addresses in the token are tried, then the local
    network is asked. A machine that joined before comes back without a token.
    """
    from pathlib import Path

    from medley.jobs.emulation import network_named
    from medley.jobs.home import node_dir
    from medley.protocol.errors import UserError
    from medley.runtimes.addresses import split
    from medley.runtimes.join import JoinOptions, run_join
    from medley.transports.identity import parse_token

    if no_worker and no_shard:
        raise UserError("--no-worker and --no-shard together leave this machine nothing to do: drop one of them")
    emulated = network_named(network)
    if transport == "grpc" and emulated.shaped:
        raise UserError(
            "--transport grpc leads past an emulated link, so it and --network exclude each other: drop one of them"
        )
    if address:
        split(address)
    if token:
        parse_token(token)
    tell = _as_json if as_json else click.echo
    run_join(
        JoinOptions(
            address=address or "",
            token=token or "",
            name=name or socket.gethostname(),
            worker=not no_worker,
            shard=not no_shard,
            allow_code=allow_code,
            directory=Path(directory).expanduser() if directory else node_dir(),
            transport=transport,
            network=emulated,
        ),
        tell,
    )


def _as_json(line: str) -> None:
    click.echo(json.dumps({"said": line}))
