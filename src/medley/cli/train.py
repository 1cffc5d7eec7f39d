"""`medley train`: a job file, from submission to result, at the coordinator here or in a pool of its own."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from medley.cli.asking import Asking, asks
from medley.cli.live import Live
from medley.cli.shown import duration, figure, percent

if TYPE_CHECKING:
    from medley.protocol.spec import JobSpec
    from medley.transports.control.operator import OperatorClient

EPILOG = """\b
Examples:
  medley train examples/demo.yaml
  medley train examples/medquad.yaml --set data.path=MedQuAD --set train.max_minutes=10
  medley train job.yaml --set network.profile=cellular
  medley train job.yaml --detach
"""
INTERRUPTED = 130


@click.command("train", epilog=EPILOG)
@click.argument("job", metavar="JOB.yaml", type=click.Path(path_type=Path))
@click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help="Override a key of the file; repeatable.")
@click.option("--detach", is_flag=True, help="Submit and return; needs a running coordinator.")
@click.option("--workers", type=click.IntRange(1, 64), help="Workers of the pool of its own. Default: 3.")
@click.option(
    "--shards-nodes", type=click.IntRange(0, 64), help="Machines of it that only keep parameters. Default: 2."
)
@asks
def command(
    asking: Asking,
    job: Path,
    sets: tuple[str, ...],
    detach: bool,
    workers: int | None,
    shards_nodes: int | None,
) -> None:
    """Run a training job from a YAML or JSON file.

    With a coordinator running here the job goes to it. Without one, a pool of processes on this machine is started
    for as long as the job takes. Ctrl-C saves everything; the same command goes on from there.
    """
    from medley.jobs.check import check
    from medley.jobs.home import coordinator_dir, is_running
    from medley.jobs.load import load_job
    from medley.protocol.errors import UserError

    spec = load_job(job, sets)
    check(spec)
    if asking.coordinator or is_running(coordinator_dir()):
        for option, value in (("--workers", workers), ("--shards-nodes", shards_nodes)):
            if value is not None:
                raise UserError(f"{option} is for a pool of its own, but a coordinator runs here: drop it")
        with asking.client() as client:
            _submit(asking, client, spec, detach)
    elif detach:
        raise UserError("--detach needs a running coordinator: start one with 'medley up', or drop --detach")
    else:
        again = shlex.join(["medley", "train", str(job), *(word for one in sets for word in ("--set", one))])
        _embedded(asking, spec, again, 3 if workers is None else workers, shards_nodes)


def _submit(asking: Asking, client: OperatorClient, spec: JobSpec, detach: bool) -> None:
    import msgspec

    answer = client.ask("submit", {"spec": msgspec.to_builtins(spec)})
    job = answer["job"]
    if answer.get("note"):
        click.echo(f"medley: {answer['note']}", err=True)
    if detach:
        asking.show({"job": job}, [f"{job} submitted; 'medley jobs logs {job} --follow' shows it"])
        return
    with _on_interrupt(f"{job} goes on without this window; 'medley jobs logs {job} --follow' shows it"):
        _follow(asking, client, job, spec)


def _embedded(asking: Asking, spec: JobSpec, again: str, workers: int, shard_nodes: int | None) -> None:
    from medley.jobs.home import coordinator_dir
    from medley.runtimes.local import Pool

    click.echo(f"no coordinator runs here: starting {workers} workers on this machine", err=True)
    directory = coordinator_dir()
    shard_nodes = 2 if shard_nodes is None else shard_nodes
    pool = Pool(directory, workers, shard_nodes, encrypt=spec.placement.encrypt, network=spec.network)
    # The pool saves while its block ends, so what is promised here is true once the command returns.
    with _on_interrupt(f"everything is saved; '{again}' goes on from here"), pool:
        try:
            pool.wait_ready()
            _follow(asking, pool.operator, _own_job(pool.operator, spec), spec)
        except KeyboardInterrupt:
            click.echo("\nmedley: saving ...", err=True)
            raise


def _own_job(client: OperatorClient, spec: JobSpec) -> str:
    """The job to follow: this one where it was interrupted, else a new one. Others that wait are set aside."""
    import msgspec

    from medley.jobs.listening import OVER
    from medley.protocol.spec import JobSpec

    found = ""
    for job in client.ask("jobs")["jobs"]:
        if job["state"] in OVER:
            continue
        name = job["job"]
        if not found and msgspec.convert(client.ask("job", {"job": name})["spec"], JobSpec) == spec:
            found = name
            click.echo(f"going on with {name}, which was interrupted at {job['samples']} samples", err=True)
            continue
        client.ask("cancel", {"job": name})
        click.echo(f"{name} is unfinished and set aside; 'medley up' and 'medley jobs resume {name}' go on", err=True)
    return found or str(client.ask("submit", {"spec": msgspec.to_builtins(spec)})["job"])


def _follow(asking: Asking, client: OperatorClient, job: str, spec: JobSpec) -> None:
    """Show a job until it is over. Raises UserError with its reason when it failed."""
    from medley.jobs.listening import OVER, live, patiently
    from medley.jobs.progress import Progress
    from medley.protocol.errors import UserError

    answer = client.ask("job", {"job": job})["job"]
    progress = Progress.of(answer, spec.train.max_minutes)
    with Live(progress, to_stderr=asking.as_json) as shown:
        while answer["state"] not in OVER:
            for event in live(client, job):
                # A new placement may have rolled the job back, and before it is prepared nobody knows its size.
                if event["kind"] == "placement" or not progress.total:
                    progress.refresh(patiently(client, job)["job"])
                progress.note(event)
                shown.show(event)
            answer = patiently(client, job)["job"]
            progress.refresh(answer)
            shown.refresh()
    if answer["state"] == "failed":
        raise UserError(f"job {job} failed: {answer['reason']}")
    asking.show(answer, _result(answer))


def _result(job: dict[str, Any]) -> list[str]:
    if job["state"] == "cancelled":
        return [f"{job['job']} was cancelled; 'medley jobs resume {job['job']}' goes on from there"]
    lines = [
        f"{job['job']} is done: {job['samples']} samples in {duration(job['elapsed_s'])}, "
        f"held-out loss {figure(job['heldout_first'])} -> {figure(job['heldout_last'])}, "
        f"next-token accuracy {percent(job['accuracy'])}"
    ]
    if job["export"]:
        from medley.serving.resolve import shortest_name

        name = shortest_name(Path(job["export"]), job["name"], job["job"])
        lines += [
            f"the model is in {job['export']}",
            f'next: medley ask {name} "your question", or medley serve {name}',
        ]
    return lines


@contextmanager
def _on_interrupt(sentence: str) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        click.echo(f"medley: {sentence}", err=True)
        click.get_current_context().exit(INTERRUPTED)
