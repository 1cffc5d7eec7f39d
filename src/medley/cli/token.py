"""`medley token`: the lines that let machines join."""

from __future__ import annotations

import re
from typing import Any

import click

from medley.cli.asking import Asking, asks
from medley.cli.shown import moment, table

EPILOG = """\b
Examples:
  medley token create
  medley token create --lifetime 7d --uses 20
  medley token list
"""
UNIT_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}
MAX_LIFETIME_S = 366 * 86400


class Lifetime(click.ParamType):
    """A time span such as 90s, 30m, 1h or 7d, as whole seconds."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        found = re.fullmatch(r"(\d{1,9})([smhd])", value.strip())
        if not found or not 0 < int(found[1]) * UNIT_S[found[2]] <= MAX_LIFETIME_S:
            self.fail(f"'{value}' is no lifetime: write a number and s, m, h or d, such as 1h, up to 366d", param, ctx)
        return int(found[1]) * UNIT_S[found[2]]


@click.group("token", epilog=EPILOG)
@asks
def command(asking: Asking) -> None:
    """Create and list the tokens that let machines join."""


@command.command("create", epilog="\b\nExample:\n  medley token create --lifetime 7d --uses 20\n")
@click.option(
    "--lifetime", type=Lifetime(), default="1h", show_default=True, help="How long it works: 90s, 30m, 1h, 7d."
)
@click.option(
    "--uses", type=click.IntRange(1, 10_000), default=1, show_default=True, help="How many machines may use it."
)
@asks
def create(asking: Asking, lifetime: int, uses: int) -> None:
    """Print a token. It is a secret: whoever has it may join."""
    answer = asking.ask("token", {"lifetime_s": lifetime, "uses": uses})
    machines = "one machine" if uses == 1 else f"{uses} machines"
    asking.show(answer, [answer["token"]])
    # Beside the token, so that a script which takes the output gets the token and nothing else.
    until = moment(answer["expires_wall_ns"])
    click.echo(f"lets {machines} join until {until}; there: medley join --token TOKEN", err=True)


@command.command("list", epilog="\b\nExample:\n  medley token list --json\n")
@asks
def listed(asking: Asking) -> None:
    """The tokens that were made, how often each was used, and when it ends. Their secrets are not kept."""
    answer = asking.ask("tokens")
    rows = [(one["id"], f"{one['used']} of {one['uses']}", moment(one["expires_wall_ns"])) for one in answer["tokens"]]
    lines = (
        table(("token", "used", "ends"), rows) if rows else ["no token was made yet; 'medley token create' makes one"]
    )
    asking.show(answer, lines)
