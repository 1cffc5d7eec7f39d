"""`medley jobs`: what was submitted, and show, logs, cancel and resume of one job."""

from __future__ import annotations

import json
from collections.abc import Iterator
from operator import itemgetter
from typing import Any

import click

from medley.cli.asking import Asking, asks
from medley.cli.shown import UNKNOWN, count, duration, figure, moment, nbytes, pairs, percent, table

EPILOG = """\b
Examples:
  medley jobs
  medley jobs show medquad
  medley jobs logs medquad --follow
  medley jobs cancel medquad
  medley jobs resume medquad
"""


WORKING = ("preparing", "running", "finishing", "cancelling")


@click.group("jobs", epilog=EPILOG, invoke_without_command=True)
@asks
def command(asking: Asking) -> None:
    """List jobs; show, follow, cancel or resume one.

    A job is named by its id, or by its name, which means the newest of that name.
    """
    if click.get_current_context().invoked_subcommand is None:
        answer = asking.ask("jobs")
        asking.show(answer, job_table(answer["jobs"]))


@command.command("show", epilog="\b\nExample:\n  medley jobs show medquad --json\n")
@click.argument("job", metavar="ID")
@asks
def show(asking: Asking, job: str) -> None:
    """Everything about one job: state and reason, figures, checkpoints, where its result lies."""
    answer = asking.ask("job", {"job": job})
    asking.show(answer, _details(answer))


@command.command("logs", epilog="\b\nExample:\n  medley jobs logs medquad --follow\n")
@click.argument("job", metavar="ID")
@click.option("--follow", is_flag=True, help="Go on with what happens, until the job is over or Ctrl-C.")
@asks
def logs(asking: Asking, job: str, follow: bool) -> None:
    """The history of one job, oldest first: commits, measurements, checkpoints, states, decisions."""
    from medley.jobs.listening import events, history

    with asking.client() as client:
        name = client.ask("job", {"job": job})["job"]["job"]
        decisions = client.ask("explain", {"subject": name})["decisions"]
        past = [*history(client, name), *({"kind": "decision", **entry} for entry in decisions)]
        for entry in sorted(past, key=lambda one: (one.get("wall_ns", 0), one.get("elapsed_s", 0.0))):
            _log(asking, entry)
        for event in events(client, name) if follow else ():
            _log(asking, event)


@command.command("cancel", epilog="\b\nExample:\n  medley jobs cancel medquad\n")
@click.argument("job", metavar="ID")
@asks
def cancel(asking: Asking, job: str) -> None:
    """Stop one job and keep what it has learned; `medley jobs resume` goes on from there."""
    answer = asking.ask("cancel", {"job": job})
    job = answer["job"]  # a name means the newest of that name
    asking.show(answer, [f"{job} stops and is saved; 'medley jobs resume {job}' goes on from there"])


@command.command("resume", epilog="\b\nExample:\n  medley jobs resume medquad\n")
@click.argument("job", metavar="ID")
@asks
def resume(asking: Asking, job: str) -> None:
    """Go on with a job that was cancelled or failed, from its newest checkpoint."""
    answer = asking.ask("resume", {"job": job})
    job = answer["job"]
    asking.show(answer, [f"{job} goes on; 'medley jobs logs {job} --follow' shows it"])


def job_table(jobs: list[dict[str, Any]]) -> list[str]:
    """Lines of jobs, newest first, or the line that says how to submit one."""
    if not jobs:
        return ["no job was submitted yet; 'medley train JOB.yaml' runs one"]
    head = ("job", "name", "state", "done", "loss", "held-out", "accuracy", "tokens/s", "submitted")
    newest = sorted(jobs, key=itemgetter("submitted_wall_ns"), reverse=True)
    return table(head, (_row(job) for job in newest))


def _row(job: dict[str, Any]) -> tuple[str, ...]:
    return (
        job["job"],
        job["name"],
        job["state"],
        _done(job),
        figure(job["loss"]),
        figure(job["heldout_last"]),
        percent(job["accuracy"]),
        count(job["tokens_per_s"]),
        moment(job["submitted_wall_ns"]),
    )


def _done(job: dict[str, Any]) -> str:
    return percent(job["samples"] / job["total"]) if job["total"] else UNKNOWN


def _details(answer: dict[str, Any]) -> list[str]:
    job = answer["job"]
    state = job["state"] + (f" since {moment(job['changed_wall_ns'])}" if job["changed_wall_ns"] else "")
    lines = [
        ("job", f"{job['job']} ({job['name']})"),
        ("state", f"{state}: {job['reason']}" if job["reason"] else state),
        ("samples", f"{job['samples']} of {job['total']} ({_done(job)}), epoch {job['epoch']:.2f}"),
        ("machines", str(job["machines"]) if job["state"] in WORKING else "none"),
        ("commits", f"{job['version']}, {job['aborted']} updates refused, {job['rollbacks']} rollbacks"),
        ("loss", figure(job["loss"])),
        ("held-out", f"{figure(job['heldout_first'])} at first, {figure(job['heldout_last'])} now"),
        ("accuracy", f"{percent(job['accuracy'])} of held-out tokens"),
        ("tokens", f"{count(job['tokens'])} in {duration(job['elapsed_s'])}, {count(job['tokens_per_s'])} a second"),
        ("checkpoints", ", ".join(f"{c['version']} ({nbytes(c['nbytes'])})" for c in answer["checkpoints"]) or "none"),
        ("result", job["export"] or "not yet"),
    ]
    return pairs(lines)


def _log(asking: Asking, entry: dict[str, Any]) -> None:
    for line in [json.dumps(entry)] if asking.as_json else _told(entry):
        click.echo(line)


def _told(entry: dict[str, Any]) -> Iterator[str]:
    """One line for an entry of a job's history; none for a kind that a person need not read."""
    said = story(entry)
    if said:
        yield f"{moment(entry['wall_ns'])}  {said}" if entry.get("wall_ns") else said


def story(entry: dict[str, Any]) -> str:
    """What an entry says, without its time; empty for a kind that a person need not read."""
    match entry:
        case {"kind": "commit", "version": version, "loss": loss, "samples": samples, "tokens": tokens, "lr": lr}:
            members = entry.get("members", [])
            workers = len(members) if isinstance(members, list) else members
            return (
                f"commit {version}: loss {figure(loss)}, {samples} samples, {tokens} tokens, "
                f"{workers} updates, lr {lr:.3g}"
            )
        case {"kind": "heldout", "version": version, "loss": loss, "accuracy": accuracy}:
            return f"held out at {version}: loss {figure(loss)}, next-token accuracy {percent(accuracy)}"
        case {"kind": "checkpoint", "version": version, "nbytes": size}:
            return f"checkpoint {version}: {nbytes(size)} saved"
        case {"kind": "state", "state": state, "reason": reason}:
            return f"{state}: {reason}" if reason else str(state)
        case {"kind": "missed", "count": missed}:
            return f"{missed} more entries came too fast to follow; 'medley jobs logs' has them"
        case {"kind": "decision", "subject": subject, "text": text}:
            return f"{subject}: {text}"
        case _:
            return ""
