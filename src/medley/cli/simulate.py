"""`medley simulate`: whole pools under a virtual clock; an experiment, or with `--check` random ones under faults."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from medley.cli.written import check_writable, write_text

if TYPE_CHECKING:
    from medley.runtimes.simulated.check import Findings, Seed

EPILOG = """\b
Examples:
  medley simulate examples/experiments/links-modes.yaml
  medley simulate examples/experiments/staleness.yaml --out results --set repeats=5 --seed 7
  medley simulate --check --seeds 1000
  medley simulate --check --serving --seeds 200
  medley simulate --check --seeds 1 --first-seed 4711 --trace seed-4711.trace
  medley simulate --check --seeds 200 --json -
"""
WRONG = 1
SEEDS = 1000


@click.command("simulate", epilog=EPILOG)
@click.argument("experiment", metavar="[EXPERIMENT.yaml]", required=False, type=click.Path(path_type=Path))
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), help="Where results go. Default: experiments/NAME."
)
@click.option("--seed", type=click.IntRange(min=0), help="Seed of the experiment, in place of the file's.")
@click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help="Override a key of the file; repeatable.")
@click.option("--check", "checking", is_flag=True, help="Run random fleets, faults and jobs; watch every invariant.")
@click.option("--serving", is_flag=True, help="Of each seed only the world that serves a split model.")
@click.option("--seeds", type=click.IntRange(min=1), default=SEEDS, show_default=True, help="How many seeds to check.")
@click.option("--first-seed", type=click.IntRange(min=0), default=0, show_default=True, help="Where to begin.")
@click.option("--jobs", type=click.IntRange(min=1), help="Processes at once; default: one for each core.")
@click.option("--json", "json_path", metavar="FILE", help="Write the result as JSON, its summary last; - prints.")
@click.option("--trace", type=click.Path(dir_okay=False, path_type=Path), help="Write the story of one seed here.")
@click.option("--table", is_flag=True, help="Print which fault met which operation, how often.")
def command(
    experiment: Path | None,
    out: Path | None,
    seed: int | None,
    sets: tuple[str, ...],
    checking: bool,
    serving: bool,
    seeds: int,
    first_seed: int,
    jobs: int | None,
    json_path: str | None,
    trace: Path | None,
    table: bool,
) -> None:
    """Simulate pools of machines with the very roles of production.

    EXPERIMENT.yaml describes a fleet, links, jobs and a sweep. Its runs are spread over processes; Ctrl-C keeps what is
    finished, and the same command goes on from there. Results are tables (CSV and Parquet) and report.html in --out.

    With --check: random fleets, jobs and faults, one of each a seed, and for every second seed a split model that is
    served; every invariant is watched, and when the faults end every job and every request must end. The exit status is
    1 when an invariant broke, when a process ended before its seeds, or when 1,000 seeds or more missed a pair of fault
    and operation that they should have met.
    """
    from medley.protocol.errors import UserError

    if experiment is not None and checking:
        raise UserError("give an experiment or --check, not both")
    if not checking and (trace is not None or table or first_seed):
        raise UserError("--trace, --table and --first-seed belong to --check; an experiment has --seed and its report")
    if json_path not in (None, "-"):
        check_writable("--json", Path(json_path))
    if experiment is not None:
        if serving or click.get_current_context().get_parameter_source("seeds") is ParameterSource.COMMANDLINE:
            raise UserError("--serving and --seeds belong to --check; an experiment has --seed and --set repeats=N")
        from medley.cli.experimenting import simulate

        click.get_current_context().exit(simulate(experiment, out, seed, sets, jobs, json_path))
    if serving and not checking:
        raise UserError("--serving belongs to --check")
    if not checking:
        raise UserError("give an experiment file, such as examples/experiments/staleness.yaml, or --check")
    if out is not None or seed is not None or sets:
        raise UserError("--out, --seed and --set belong to an experiment; --check has --seeds and --first-seed")
    if trace is not None and seeds != 1:
        raise UserError("--trace tells the story of one seed: give --seeds 1 and --first-seed as well")
    if trace is not None:
        check_writable("--trace", trace)
    click.get_current_context().exit(
        _check(first_seed, seeds, jobs or os.cpu_count() or 1, json_path, trace, table, serving)
    )


def _check(
    first: int, seeds: int, jobs: int, json_path: str | None, trace: Path | None, table: bool, serving: bool
) -> int:
    from medley.cli.checking import Told
    from medley.runtimes.simulated import check

    kind: check.Kind = "serving" if serving else "all"
    told = Told(first, seeds, quiet=json_path == "-")
    try:
        findings = (
            check.check(first, seeds, jobs, told.hear, kind)
            if trace is None
            else check.traced(first, trace, told.hear, kind)
        )
    except KeyboardInterrupt:
        told.interrupted()
        _write(json_path, told.findings)
        return 130
    told.findings = findings
    told.end(table)
    _write(json_path, findings)
    return WRONG if findings.violations or findings.uncovered() or findings.lost else 0


def _write(json_path: str | None, findings: Findings | None) -> None:
    if json_path is None or findings is None:
        return
    lines = [json.dumps(_violation(seed)) for seed in findings.violations]
    uncovered = findings.uncovered()
    lines += [json.dumps({"uncovered": {"fault": f, "operation": o}}) for f, o in uncovered]
    lines.append(
        json.dumps(
            {
                "seeds": findings.seeds,
                "missing": len(findings.lost),
                "violations": len(findings.violations),
                "uncovered": len(uncovered),
                "digest": findings.digest,
                "seconds": round(findings.seconds, 3),
                "first_seed": findings.first,
                "events": findings.events,
                "virtual_s": round(findings.virtual_s, 3),
            }
        )
    )
    if json_path == "-":
        click.echo("\n".join(lines))
    else:
        write_text("--json", Path(json_path), "\n".join(lines) + "\n")


def _violation(seed: Seed) -> dict[str, Any]:
    from medley.runtimes.simulated.check import command_of

    return {
        "violation": {
            "seed": seed.seed,
            "invariant": seed.invariant,
            "sentence": seed.sentence,
            "replay": command_of(seed),
        }
    }
