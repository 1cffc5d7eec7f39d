"""`medley nodes`: the machines that joined, and `medley nodes revoke` for one that shall not come back."""

from __future__ import annotations

from typing import Any

import click

from medley.cli.asking import Asking, asks
from medley.cli.shown import count, duration, nbytes, table

EPILOG = """\b
Examples:
  medley nodes
  medley nodes revoke laptop-ben-3f2a91c0 --reason "given away"
"""


@click.group("nodes", epilog=EPILOG, invoke_without_command=True)
@asks
def command(asking: Asking) -> None:
    """List the machines that joined, what each can do, and why it does what it does."""
    if click.get_current_context().invoked_subcommand is None:
        answer = asking.ask("nodes")
        asking.show(answer, node_table(answer["nodes"]))


@command.command("revoke", epilog="\b\nExample:\n  medley nodes revoke laptop-ben-3f2a91c0 --reason 'given away'\n")
@click.argument("node")
@click.option("--reason", default="", help="What its owner reads when it tries to come back.")
@asks
def revoke(asking: Asking, node: str, reason: str) -> None:
    """Shut NODE out: its connection ends now and its certificate is refused from here on."""
    answer = asking.ask("revoke", {"node": node, "reason": reason})
    asking.show(answer, [f"{node} is shut out; its work goes to others. A new token lets it join again."])


def node_table(nodes: list[dict[str, Any]]) -> list[str]:
    """Lines of machines, or the line that says how to get one."""
    if not nodes:
        return ["no machine has joined yet; 'medley token create' prints the line that lets one join"]
    head = ("machine", "state", "roles", "cores", "memory", "tokens/s", "heard", "why")
    return table(head, (_row(node) for node in nodes))


def _row(node: dict[str, Any]) -> tuple[str, ...]:
    return (
        node["node"],
        node["phase"] if node["connected"] else "away",
        "+".join(node["roles"]) or "none",
        str(node["cores"]),
        nbytes(node["memory_bytes"]),
        count(node["tokens_per_s"]),
        f"{duration(node['heard_s_ago'])} ago",
        node["reason"],
    )
