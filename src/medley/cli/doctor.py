"""`medley doctor`: what works on this machine, what does not, and what to do about it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from medley.jobs.finding import Finding

EPILOG = """\b
Examples:
  medley doctor
  medley doctor --token medley1.AbC...
"""
FAILED = 1


@click.command("doctor", epilog=EPILOG)
@click.option("--coordinator", metavar="DIR", help="Directory of the coordinator to reach; default: the one here.")
@click.option("--token", envvar="MEDLEY_TOKEN", help="Try the doors of this join token instead; it is not used up.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object with every finding.")
def command(coordinator: str | None, token: str | None, as_json: bool) -> None:
    """Check this machine: what works, what does not, what to do.

    Tries the coordinator's control plane, its door and the tensor plane, and measures what this machine computes. The
    exit status is 0 when nothing failed, else 1.
    """
    from medley.protocol.errors import UserError

    if coordinator and token:
        raise UserError("--coordinator and --token ask for two different coordinators: give one of them")
    findings: list[Finding] = []
    for finding in _findings(coordinator, token):
        findings.append(finding)
        if not as_json:
            click.echo(_line(finding))
    failed = sum(1 for one in findings if one.level == "fail")
    if as_json:
        click.echo(json.dumps({"ok": not failed, "findings": [asdict(one) for one in findings]}))
    elif failed:
        click.echo(f"{failed} of {len(findings)} checks failed")
    if failed:
        click.get_current_context().exit(FAILED)


def _findings(coordinator: str | None, token: str | None) -> Iterator[Finding]:
    from medley.jobs.home import coordinator_dir, home, node_dir
    from medley.jobs.machine import check_machine
    from medley.jobs.reach import check_coordinator, check_member, check_token

    # The network first: it is quick, and it is what most people call a doctor for.
    if token:
        yield from check_token(token)
    else:
        yield from check_coordinator(coordinator_dir(coordinator))
    yield from check_member(node_dir())
    yield from check_machine(home())


def _line(finding: Finding) -> str:
    advice = f": {finding.do}" if finding.do else ""
    return f"{finding.level:<4}  {finding.what:<11}  {finding.says}{advice}"
