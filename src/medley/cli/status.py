"""`medley status`: the coordinator, its jobs and its machines on one screen."""

from __future__ import annotations

from typing import Any

import click

from medley.cli.asking import Asking, asks
from medley.cli.jobs import job_table
from medley.cli.nodes import node_table
from medley.cli.shown import duration, pairs, table

EPILOG = """\b
Examples:
  medley status
  medley status --json
"""


@click.command("status", epilog=EPILOG)
@asks
def command(asking: Asking) -> None:
    """Say how the coordinator and its jobs are doing."""
    answer = asking.ask("status")
    asking.show(answer, _lines(answer))


def _lines(answer: dict[str, Any]) -> list[str]:
    nodes, jobs = answer["nodes"], answer["jobs"]
    connected = sum(1 for node in nodes if node["connected"])
    head = [
        ("coordinator", f"medley {answer['version']}, up for {duration(answer['uptime_s'])}, life {answer['term']}"),
        *((name, str(address)) for name, address in answer["addresses"].items() if address),
        ("machines", f"{connected} connected" + (f", {len(nodes) - connected} away" if connected < len(nodes) else "")),
    ]
    return [*pairs(head), "", *job_table(jobs), "", *serving_table(answer["servings"]), *node_table(nodes)]


def serving_table(servings: list[dict[str, Any]]) -> list[str]:
    """Nothing where nothing is served; what each pipeline does, `medley serve --watch` shows."""
    if not servings:
        return []
    head = ("serving", "machines", "priority", "for", "why")
    return [*table(head, map(_serving, servings)), ""]


def _serving(serving: dict[str, Any]) -> tuple[str, ...]:
    machines = serving["machines"]
    ready = sum(machine["state"] == "serves" for machine in machines)
    return (
        serving["job"],
        f"{ready} of {len(machines)} serve",
        str(serving["priority"]),
        duration(serving["since_s"]),
        serving["reason"],
    )
