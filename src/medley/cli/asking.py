"""What every command that asks a coordinator shares: the options --coordinator and --json, the client, the printing."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from medley.transports.control.operator import OperatorClient


@dataclass(frozen=True, slots=True)
class Asking:
    """What the two options say."""

    coordinator: str | None
    as_json: bool

    def client(self) -> OperatorClient:
        """The coordinator that was meant. Raises UserError when there is none."""
        from medley.jobs.home import operator

        return operator(self.coordinator)

    def ask(self, method: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """One question to it."""
        with self.client() as client:
            return client.ask(method, body)

    def show(self, answer: object, lines: Iterable[str]) -> None:
        """The answer as one line of JSON, or the lines for a person."""
        if self.as_json:
            click.echo(json.dumps(answer))
        else:
            for line in lines:
                click.echo(line)


def asks(function: Callable[..., None]) -> Callable[..., None]:
    """Add both options to a command, which gets them as its first argument; a group's hold for its subcommands."""

    @click.option("--coordinator", metavar="DIR", help="Directory of the coordinator to ask; default: the one here.")
    @click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
    @functools.wraps(function)
    def wrapped(coordinator: str | None, as_json: bool, **rest: Any) -> None:
        context = click.get_current_context()
        above = context.find_object(Asking) or Asking(None, False)
        context.obj = Asking(coordinator or above.coordinator, as_json or above.as_json)
        function(context.obj, **rest)

    return wrapped
