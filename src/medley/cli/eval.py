"""`medley eval`: how good a model's answers are, on questions whose answers are known."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from medley.serving.evaluate import Report

EPILOG = """\b
Examples:
  medley eval demo --data questions.jsonl
  medley eval ./my-model --data questions.jsonl --limit 100 --json report.json
"""


@click.command("eval", epilog=EPILOG)
@click.argument("model")
@click.option("--data", required=True, help="JSON lines with the fields question and answer.")
@click.option("--limit", type=click.IntRange(1), help="Score the first so many examples only.")
@click.option("--max-tokens", type=click.IntRange(1), default=256, show_default=True, help="Length of an answer.")
@click.option(
    "--bootstrap",
    type=click.IntRange(0, 100_000),
    default=1000,
    show_default=True,
    help="Resamplings for the confidence intervals.",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the resampling.")
@click.option("--dtype", type=click.Choice(["auto", "fp32", "bf16"]), default="auto", show_default=True)
@click.option("--json", "json_to", metavar="FILE", help="Write the report as JSON; - prints it.")
def command(
    model: str,
    data: str,
    limit: int | None,
    max_tokens: int,
    bootstrap: int,
    seed: int,
    dtype: str,
    json_to: str | None,
) -> None:
    """Score MODEL on questions with known answers.

    Prints answer-only loss and perplexity, ROUGE-L and token F1 with 95 % confidence intervals. MODEL is a
    job, a directory in Hugging Face format, or a hub name.
    """
    from medley.data.sources import read
    from medley.protocol.errors import UserError
    from medley.protocol.spec import Data
    from medley.serving.resolve import open_generator

    if not Path(data).expanduser().is_file():
        raise UserError(f"--data '{data}' is no file: give JSON lines with the fields question and answer")
    if json_to and json_to != "-" and not Path(json_to).expanduser().resolve().parent.is_dir():
        raise UserError(f"--json '{json_to}' cannot be written: its directory does not exist")
    examples = read(Data(source="jsonl", path=data, max_samples=limit or 0))
    _, generator = open_generator(model, dtype)
    from medley.serving.evaluate import evaluate

    with click.progressbar(length=len(examples), label="scored", file=sys.stderr) as bar:
        report = evaluate(
            generator,
            examples,
            max_tokens=max_tokens,
            draws=bootstrap,
            seed=seed,
            progress=lambda score: bar.update(1),
        )
    if report.skipped:
        click.echo(f"medley: {len(report.skipped)} questions do not fit the context and were skipped", err=True)
    _write(report, json_to)


def _write(report: Report, json_to: str | None) -> None:
    body = json.dumps(report.as_json(), ensure_ascii=False)
    if json_to == "-":
        click.echo(body)
        return
    click.echo(f"{report.model}: {report.examples} examples, {report.answer_tokens} answer tokens")
    for name, figure in report.figures.items():
        click.echo(f"  {name:<11}{figure.value:>10.4g}   95 % [{figure.low:.4g}, {figure.high:.4g}]")
    if json_to:
        Path(json_to).expanduser().write_text(body + "\n", encoding="utf-8")
