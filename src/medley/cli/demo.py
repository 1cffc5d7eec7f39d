"""`medley demo`: the whole of Medley on this machine in about five minutes."""

from __future__ import annotations

import json
import os
import secrets
import threading
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from medley.cli.shown import duration, figure, percent

if TYPE_CHECKING:
    from medley.jobs.demonstration import Demonstration, Findings, Link
    from medley.jobs.progress import Progress
    from medley.runtimes.local import Pool

EPILOG = """\b
Examples:
  medley demo
  medley demo --minutes 2 --workers 2 --json report.json
  medley demo --network cellular
  medley demo --stay
"""
PLAIN_EVERY_S = 10.0
SHOWN = 5


@click.command("demo", epilog=EPILOG)
@click.option(
    "--minutes", type=click.FloatRange(0.1, 600), default=4.0, show_default=True, help="Training time, at most."
)
@click.option("--workers", type=click.IntRange(1, 16), default=3, show_default=True, help="Worker processes.")
@click.option("--network", metavar="PRESET", default="none", help="Put the workers behind an emulated bad link.")
@click.option("--stay", is_flag=True, help="Keep the page and the API up afterwards, until Ctrl-C.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write a report to this file ('-': stdout).")
@click.option("--dir", "directory", type=click.Path(path_type=Path), help="Its files. Default: below ~/.medley/runs.")
def command(
    minutes: float, workers: int, network: str, stay: bool, json_file: Path | None, directory: Path | None
) -> None:
    """Train a small language model across processes, kill one, and ask the result questions.

    Starts a coordinator, two parameter shards and three workers, as processes that talk over real sockets; trains a
    Llama of about 5 M parameters from scratch on built-in health questions and answers; kills a worker midway.
    """
    from medley.jobs.emulation import network_named
    from medley.jobs.home import home
    from medley.runtimes.clock import SystemClock
    from medley.runtimes.local import Pool

    link = replace(network_named(network), machines="workers")
    if json_file is not None:
        _check_writable(json_file)
    screen = Screen(to_stderr=str(json_file) == "-")
    clock = SystemClock()
    began_ns = clock.now_ns()
    directory = directory or home() / "runs" / f"demo-{secrets.token_hex(3)}"
    with Pool(directory, workers, 2, network=link) as pool:
        try:
            demonstration = _train(pool, screen, workers, minutes, network)
            _ask(demonstration, screen)
        except KeyboardInterrupt:
            pool.abandon()  # nobody goes on with a demonstration: there is nothing to save
            raise
        findings = demonstration.findings
        findings.seconds = round((clock.now_ns() - began_ns) / 1e9, 1)
        _tell(findings, screen)
        if json_file is not None:
            _write(json_file, findings)
        if stay:
            _stay(pool, findings, screen)


def _check_writable(path: Path) -> None:
    """Now, rather than after minutes of training. Raises UserError."""
    from medley.protocol.errors import UserError

    folder = path.resolve().parent
    if str(path) == "-":
        return
    if not folder.is_dir():
        raise UserError(f"--json: the directory {folder} does not exist")
    if path.is_dir() or not os.access(path if path.exists() else folder, os.W_OK):
        raise UserError(f"--json: {path} cannot be written: give a file in a directory of yours, or '-'")


def _train(pool: Pool, screen: Screen, workers: int, minutes: float, network: str) -> Demonstration:
    from medley.data.corpus import NOTICE
    from medley.jobs.demonstration import SHARD_NODES, Demonstration
    from medley.jobs.emulation import in_words

    screen.say(f"Medley demo: a coordinator, {SHARD_NODES} shards, {workers} workers; {minutes:g} minutes of training")
    screen.say(NOTICE)
    if network != "none":
        screen.say(f"each worker stands behind an emulated link, {in_words(network)}")
    screen.say(f"live page: {pool.address['http']}")
    pool.wait_ready()
    screen.say("all processes are connected; data, tokenizer and model are prepared")
    demonstration = Demonstration(pool, screen, workers, minutes, network)
    with screen:
        demonstration.run()
    return demonstration


def _ask(demonstration: Demonstration, screen: Screen) -> None:
    screen.say("\nquestions it was never trained on in these words, answered by the weights alone:")
    for number, answer in enumerate(demonstration.answer()):
        mark = "good" if answer.rouge_l >= 0.5 else "    "
        if number < SHOWN:
            screen.say(f"\n  Q: {answer.question}\n  A: {answer.answer}\n     [{mark} ROUGE-L {answer.rouge_l:.2f}]")
        else:
            screen.say(f"  {mark} {answer.rouge_l:.2f}  {answer.question}")


def _tell(found: Findings, screen: Screen) -> None:
    from medley.serving.resolve import shortest_name

    name = shortest_name(Path(found.model), "demo", found.job)
    again = f", its samples out again in {found.lease_out_again_s} s" if found.lease_out_again_s is not None else ""
    screen.say(
        f"\nWhat happened: {found.samples} samples were trained in {found.commits} commits at "
        f"{found.tokens_per_s:.0f} tokens/s;\n"
        f"held-out loss fell from {figure(found.heldout_first)} to {figure(found.heldout_last)}; "
        f"{found.kills} worker was killed{again};\n"
        f"{found.samples_missing} samples were lost and {found.samples_doubled} counted twice; "
        f"{found.answers_good} of {found.answers_total} questions were answered well.\n"
        f"The model is in {found.model}; ask it yourself:\n"
        f'  medley ask {name} "What are the symptoms of asthma?"'
    )
    if found.network is not None:
        screen.say(_cost(found.network))


def _cost(link: Link) -> str:
    from medley.jobs.emulation import size

    both = link.up_nbytes + link.down_nbytes
    return (
        f"\nWhat the link '{link.profile}' cost: the workers received {size(link.down_nbytes)} and sent "
        f"{size(link.up_nbytes)} through it;\none stream would take {duration(both / link.goodput_bytes_per_s)} for "
        "all of that, the network of this machine well under a second."
    )


def _write(path: Path, found: Findings) -> None:
    from medley.protocol.errors import UserError

    text = json.dumps(found.as_json(), indent=2)
    if str(path) == "-":
        click.echo(text)
        return
    try:
        path.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"--json: {path} cannot be written ({error.strerror})") from error


def _stay(pool: Pool, found: Findings, screen: Screen) -> None:
    import subprocess
    import sys

    serving = subprocess.Popen([sys.executable, "-m", "medley", "serve", found.model, "--port", "0"])
    screen.say(f"\nthe page stays at {pool.address['http']}; Ctrl-C ends everything")
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        screen.say("\nstopping")
    finally:
        serving.terminate()
        serving.wait()


class Screen:
    """Shows the demonstration: a table that moves where there is a terminal, plain lines where there is none."""

    def __init__(self, to_stderr: bool = False) -> None:
        from rich.console import Console

        self._console = Console(highlight=False, stderr=to_stderr)
        self._live: Any = None
        self._said_s = -PLAIN_EVERY_S

    def say(self, text: str) -> None:
        self._console.print(text, markup=False, soft_wrap=True)

    def __enter__(self) -> Screen:
        if self._console.is_terminal:
            from rich.live import Live

            self._live = Live(console=self._console, refresh_per_second=4)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def show(self, progress: Progress, nodes: list[dict[str, Any]], event: dict[str, Any]) -> None:
        if self._live is not None:
            self._live.update(_table(progress, nodes))
        elif event["kind"] == "state":
            self.say(f"  {event['state']}" + (f": {event['reason']}" if event["reason"] else ""))
        elif event["kind"] in ("commit", "heldout") and progress.elapsed_s - self._said_s >= PLAIN_EVERY_S:
            self._said_s = progress.elapsed_s
            self.say("  " + _line(progress) + "  " + _workers(nodes))


def _line(progress: Progress) -> str:
    return (
        f"{duration(progress.elapsed_s):>6}  version {progress.version:4d}  loss {figure(progress.loss)}  "
        f"held-out {figure(progress.heldout_loss)}  next-token {percent(progress.accuracy)}  "
        f"{progress.tokens_per_s:6.0f} tokens/s"
    )


def _workers(nodes: list[dict[str, Any]]) -> str:
    workers = [n for n in nodes if "worker" in n["roles"]]
    return " ".join(f"{n['node']}:{n['tokens_per_s']:.0f}" if n["connected"] else f"{n['node']}:lost" for n in workers)


def _table(progress: Progress, nodes: list[dict[str, Any]]) -> Any:
    from rich.table import Table

    table = Table(title=_line(progress), title_justify="left", box=None, padding=(0, 2))
    for column in ("machine", "state", "tokens/s", "what it does"):
        table.add_column(column)
    for node in sorted(nodes, key=lambda n: n["node"]):
        state = "connected" if node["connected"] else "lost"
        table.add_row(node["node"], state, f"{node['tokens_per_s']:.0f}", node["reason"])
    return table
