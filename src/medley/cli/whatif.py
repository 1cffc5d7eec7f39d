"""`medley whatif`: what a job would take on the machines that are there, or on others, without running it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from medley.cli.asking import Asking, asks
from medley.cli.shown import count, duration, nbytes, table

if TYPE_CHECKING:
    from medley.jobs.machines import Fleet
    from medley.jobs.whatif import Change, Estimate, Question, Verdict

EPILOG = """\b
Examples:
  medley whatif examples/demo.yaml
  medley whatif examples/demo.yaml --nodes examples/fleet.yaml
  medley whatif examples/demo.yaml --nodes examples/fleet.yaml --add examples/laptop.yaml
  medley whatif job.yaml --without old-laptop --set train.compression.kind=int8
"""
WORKERS, KEEPERS = 3, 2  # what `medley train` starts where no coordinator runs
IDLE = 0.3  # of the time: workers that compute less mostly wait for tensors


@click.command("whatif", epilog=EPILOG)
@click.argument("job", metavar="JOB.yaml", type=click.Path(path_type=Path))
@click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help="Override a key of the job; repeatable.")
@click.option(
    "--nodes", type=click.Path(path_type=Path), metavar="FILE", help="Described machines instead of real ones."
)
@click.option(
    "--add", multiple=True, type=click.Path(path_type=Path), metavar="FILE", help="And with these; repeatable."
)
@click.option("--without", multiple=True, metavar="NODE", help="And without this machine; repeatable.")
@click.option("--network", default="good", show_default=True, help="Preset of the links of measured machines.")
@click.option("--samples", type=click.IntRange(1), help="Training examples, where they cannot be counted here.")
@click.option("--seed", default=1, show_default=True, type=click.IntRange(0), help="Of the simulation's chance.")
@asks
def command(
    asking: Asking,
    job: Path,
    sets: tuple[str, ...],
    nodes: Path | None,
    add: tuple[Path, ...],
    without: tuple[str, ...],
    network: str,
    samples: int | None,
    seed: int,
) -> None:
    """Say what a job would take, and what limits it.

    Time, cost, bytes and energy come from a simulation with the real roles; nothing is trained. The machines are those
    of the coordinator here, at the speeds that it measured; those of --nodes; or, where there is neither, the pool that
    'medley train' would start on this machine. A long job is simulated until its pace is known.
    """
    from medley.jobs.check import check
    from medley.jobs.load import load_job
    from medley.jobs.machines import read_fleet
    from medley.jobs.sizing import size_job
    from medley.jobs.whatif import Question, answer

    _check_network(network, nodes)
    spec = load_job(job, sets)
    check(spec)
    sized = size_job(spec, samples or 0)
    question = Question(spec, sized.workload, seed)
    fleet = read_fleet(nodes, question.size) if nodes else _real(asking, network)
    for name in without:
        fleet.without(name)  # a misspelt name is told before anything takes time
    added = [group for path in add for group in read_fleet(path, question.size).groups]
    found = answer(question, fleet, added, without)
    assumed = (*sized.assumed, *fleet.assumed)
    asking.show(_plain(question, fleet, found, assumed), _lines(question, fleet, found, assumed))


def _check_network(network: str, nodes: Path | None) -> None:
    from medley.protocol.conditions import PRESETS
    from medley.protocol.errors import UserError, did_you_mean

    if network not in PRESETS:
        raise UserError(f"--network: there is no preset '{network}'; {did_you_mean(network, PRESETS)}")
    if nodes and click.get_current_context().get_parameter_source("network") is ParameterSource.COMMANDLINE:
        raise UserError("--network is of measured machines: described ones have theirs in the file of --nodes")


def _real(asking: Asking, network: str) -> Fleet:
    """The machines of the coordinator that is meant, or the pool that this machine would be."""
    from medley.jobs.home import coordinator_dir, is_running

    if asking.coordinator or is_running(coordinator_dir()):
        return _of_coordinator(asking, network)
    import psutil

    from medley.engines.probe import probe
    from medley.jobs.machines import this_machine
    from medley.runtimes.clock import SystemClock

    seen = probe(SystemClock().now_ns)
    gflops = max(seen.fp32_gflops, seen.bf16_gflops) if seen.native_bf16 else seen.fp32_gflops
    memory = int(psutil.virtual_memory().total)
    return this_machine(WORKERS, KEEPERS, gflops, seen.native_bf16, seen.threads, memory)


def _of_coordinator(asking: Asking, network: str) -> Fleet:
    from medley.jobs.listening import OVER
    from medley.jobs.load import job_from_dict
    from medley.jobs.machines import measured
    from medley.jobs.sizing import model_size
    from medley.policies.costs import Size, size_of
    from medley.policies.devices import Device
    from medley.protocol.conditions import PRESETS

    with asking.client() as client:
        seen = client.ask("status")
        now = next((one["job"] for one in seen["jobs"] if one["state"] not in OVER), "")
        spec = job_from_dict(client.ask("job", {"job": now})["spec"], f"job {now}") if now else None

    def size(device: Device) -> Size:
        assert spec is not None, "only a job that runs measures machines"
        return size_of(spec, *model_size(spec), 1, device)

    return measured(seen["nodes"], PRESETS[network], size)


# -- for a person -------------------------------------------------------------------------------------------------


def _lines(question: Question, fleet: Fleet, found: Verdict, assumed: tuple[str, ...]) -> Iterator[str]:
    spec, work, made = question.spec, question.workload, found.estimate
    frozen = f" on {count(work.frozen_parameters)} frozen ones" if work.frozen_parameters else ""
    yield (
        f"{spec.name}: {count(work.parameters)} parameters{frozen}, "
        f"{work.samples} examples, {spec.train.epochs:g} epochs, mode {spec.train.sync.mode}"
    )
    yield f"on {len(fleet.machines)} machines, {fleet.origin}"
    yield ""
    yield from _estimate(made)
    yield ""
    rows = ((s.node, s.device, _roles(s.trains, s.keeps), _part(s.computes), _part(s.moves)) for s in made.shares)
    yield from table(("machine", "device", "role", "computes", "moves tensors"), rows)
    yield ""
    yield from found.unfit
    yield from _limits(found, work.parameters, spec.train.sync.mode)
    for change in found.others:
        yield _change(change)
    if assumed:
        yield ""
        yield f"assumed: {'; '.join(assumed)}"


def _part(fraction: float) -> str:
    return "< 1%" if 0 < fraction < 0.005 else f"{fraction:.0%}"


def _estimate(made: Estimate) -> Iterator[str]:
    stopped = made.whole_s > made.seconds * 1.001
    limit = f", where train.max_minutes ends it; all epochs would take {duration(made.whole_s)}" if stopped else ""
    yield f"  time     {duration(made.seconds)}{limit}"
    yield f"  speed    {count(made.tokens_per_s)} tokens a second"
    yield f"  network  {nbytes(made.nbytes)} moved"
    yield f"  energy   {made.energy_kwh:.3g} kWh"
    yield f"  cost     {f'${made.usd:.2f}' if made.usd else 'no rent'}"
    if made.simulated < made.commits:
        yield f"  (from the first {made.simulated} of about {made.commits} commits)"


def _roles(trains: bool, keeps: bool) -> str:
    return " and ".join(role for role, on in (("trains", trains), ("keeps parameters", keeps)) if on) or "idle"


def _limits(found: Verdict, parameters: int, mode: str) -> Iterator[str]:
    if found.limits:
        first = found.limits[0]
        part = "the link" if first.kind == "link" else "the speed"
        yield f"What limits: {part} of {first.what}; twice as good would save {first.gain:.0%} of the time."
    else:
        yield "What limits: no single kind of machine; none of them, twice as fast, would be noticed."
    at_work = [s.computes for s in found.estimate.shares if s.trains]
    if sum(at_work) / len(at_work) < IDLE and mode != "local-sgd":
        yield (
            "The machines mostly wait for tensors: train.sync.mode local-sgd with local_steps, "
            "or train.compression, moves fewer bytes."
        )


def _change(change: Change) -> str:
    from medley.jobs.whatif import NOTICED

    head = {"one more": "One more ", "added": "With ", "without": "Without "}[change.kind] + change.what
    if abs(change.gain) <= NOTICED:
        return f"{head}: no difference."
    way = f"{change.gain:.0%} sooner" if change.gain > 0 else f"{-change.gain:.0%} later"
    return f"{head}: {way}."


def _plain(question: Question, fleet: Fleet, found: Verdict, assumed: tuple[str, ...]) -> dict[str, object]:
    return {
        "job": question.spec.name,
        "workload": asdict(question.workload),
        "fleet": [m.name for m in fleet.machines],
        "origin": fleet.origin,
        "estimate": asdict(found.estimate),
        "unfit": found.unfit,
        "limits": [_as_json(c) for c in found.limits],
        "others": [_as_json(c) for c in found.others],
        "assumed": assumed,
        "seed": question.seed,
    }


def _as_json(change: Change) -> dict[str, object]:
    made = change.estimate
    figures = {"seconds": made.whole_s, "nbytes": made.nbytes, "usd": made.usd, "energy_kwh": made.energy_kwh}
    return {"what": change.what, "kind": change.kind, "gain": change.gain, **figures}
