"""`medley plan`: which machines would hold which layers of a model, and what that would do."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from medley.cli.shown import nbytes, table

if TYPE_CHECKING:
    from medley.policies.decision import Decision
    from medley.policies.pipeline.describe import Objective, Plan

EPILOG = """\b
Examples:
  medley plan tinyllama-1.1b
  medley plan tinyllama-1.1b --nodes examples/fleet.yaml
  medley plan ./my-model --nodes examples/fleet.yaml --objective throughput --weights int8
  medley plan tinyllama-1.1b --nodes examples/fleet.yaml --pin desk=16,mac=6
"""
IMPOSSIBLE = 1


@click.command("plan", epilog=EPILOG)
@click.argument("model", metavar="MODEL")
@click.option(
    "--nodes", type=click.Path(path_type=Path), metavar="FILE", help="Described machines; default: this one, measured."
)
@click.option(
    "--objective",
    type=click.Choice(["latency", "throughput"]),
    default="latency",
    show_default=True,
    help="One stream as fast as can be, or all streams together.",
)
@click.option("--weights", default="bf16", show_default=True, help="bf16, fp32, int8 or int4.")
@click.option("--pin", default="", metavar="NODE=LAYERS,...", help="A layout by hand; '/' parts replicas.")
@click.option(
    "--kv-tokens",
    type=click.IntRange(1, 1 << 24),
    default=8 * 2048,
    show_default=True,
    help="Tokens that each replica must hold at once.",
)
@click.option(
    "--prompt-tokens",
    type=click.IntRange(1, 1 << 20),
    default=512,
    show_default=True,
    help="Of the prompt whose first token is predicted.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(
    model: str,
    nodes: Path | None,
    objective: Objective,
    weights: str,
    pin: str,
    kv_tokens: int,
    prompt_tokens: int,
    as_json: bool,
) -> None:
    """Say which machines would hold which layers of MODEL, before anything is loaded.

    MODEL is a preset, a job, a directory or a hub name. Compares one machine, replicas, a split and replicas of splits,
    and says who does not help and why. The exit status is 1 when the machines cannot hold the model.
    """
    import json

    from medley.jobs.planning import LOCAL, parts, read_machines, subject, this_machine
    from medley.policies.pipeline.describe import Links, Wanted
    from medley.policies.pipeline.planner import plan

    of = subject(model, weights)
    machines, links = read_machines(nodes, of) if nodes else ((this_machine(of),), Links(LOCAL))
    wanted = Wanted(objective, kv_tokens, prompt_tokens=prompt_tokens)
    decision = plan(of.shape, machines, links, wanted, pin)
    if as_json:
        click.echo(json.dumps({"model": asdict(of.shape), "wanted": asdict(wanted), **_plain(decision)}))
    else:
        click.echo(parts(of.shape, machines))
        for line in _lines(decision, objective):
            click.echo(line)
    if decision.plan is None:
        click.get_current_context().exit(IMPOSSIBLE)


def _plain(decision: Decision[Plan | None]) -> dict[str, Any]:
    if decision.plan is None:
        return {"plan": None, "reason": decision.reason}
    return {"plan": {"kind": decision.plan.layout.kind, **asdict(decision.plan)}, "reason": decision.reason}


def _lines(decision: Decision[Plan | None], objective: str) -> Iterator[str]:
    yield decision.reason
    if decision.plan is None:
        return
    yield ""
    yield from table(("machine", "layers", "memory"), _stages(decision.plan))
    yield ""
    told = decision.plan.prediction
    yield f"  one stream    {_rate(told.stream_tokens_per_s)} tokens/s"
    yield f"  all streams   {_rate(told.tokens_per_s)} tokens/s from {told.streams} on; {told.slowest} is the slowest"
    yield f"  first token   {told.first_token_s:.3g} s"
    others = [a for a in decision.plan.alternatives if a.layout and a.kind != decision.plan.layout.kind]
    if others:
        yield ""
        yield f"other layouts, tokens/s by {objective}: " + ", ".join(f"{a.kind} {_rate(a.value)}" for a in others)
    for out in decision.plan.left_out:
        yield f"{out.machine} stays out: {out.reason}"


def _rate(tokens_per_s: float) -> str:
    return f"{tokens_per_s:.0f}" if tokens_per_s >= 100 else f"{tokens_per_s:.3g}"


def _stages(plan: Plan) -> Iterator[tuple[str, str, str]]:
    for number, pipeline in enumerate(plan.layout.replicas, start=1):
        replica = f" (replica {number})" if len(plan.layout.replicas) > 1 else ""
        for stage in pipeline:
            memory = nbytes(plan.prediction.memory_nbytes[stage.machine])
            yield stage.machine + replica, f"{stage.first}-{stage.end - 1}", memory
