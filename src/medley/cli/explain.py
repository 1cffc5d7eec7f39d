"""`medley explain`: the decisions about a job or a machine, with their reasons."""

from __future__ import annotations

import click

from medley.cli.asking import Asking, asks
from medley.cli.shown import moment

EPILOG = """\b
Examples:
  medley explain medquad-1f03c2
  medley explain laptop-ben-3f2a91c0 --json
"""


@click.command("explain", epilog=EPILOG)
@click.argument("subject", metavar="ID")
@asks
def command(asking: Asking, subject: str) -> None:
    """Tell the decisions about a job or a machine, with reasons, oldest first.

    ID is a job or a machine as `medley jobs` and `medley nodes` list them, or any word that a decision names.
    """
    answer = asking.ask("explain", {"subject": subject})
    decisions = answer["decisions"]
    lines = [f"{moment(one['wall_ns'])}  {one['subject']}: {one['text']}" for one in decisions]
    asking.show(answer, lines or [f"nothing was decided about '{subject}' yet; 'medley status' lists what there is"])
