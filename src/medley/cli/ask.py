"""`medley ask`: one question, one answer, printed as it comes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from medley.engines.sampling import Sampling
    from medley.serving.remote import Said

EPILOG = """\b
Examples:
  medley ask demo "What is a fever?"
  medley ask ./my-model "How long does a cold last?" --temperature 0.7 --seed 3
"""


@click.command("ask", epilog=EPILOG)
@click.argument("model")
@click.argument("question")
@click.option("--max-tokens", type=click.IntRange(1), default=256, show_default=True, help="Length of the answer.")
@click.option(
    "--temperature",
    type=click.FloatRange(0, 2),
    default=0.0,
    show_default=True,
    help="0 takes the likeliest.",
)
@click.option("--top-p", type=click.FloatRange(0, 1), default=1.0, show_default=True, help="Nucleus to draw from.")
@click.option("--seed", type=int, default=0, show_default=True, help="The same seed repeats the answer.")
@click.option("--dtype", type=click.Choice(["auto", "fp32", "bf16"]), default="auto", show_default=True)
@click.option("--local", is_flag=True, help="Load the model, even where the pool here serves it.")
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON instead of text.")
def command(
    model: str,
    question: str,
    max_tokens: int,
    temperature: float,
    top_p: float,
    seed: int,
    dtype: str,
    local: bool,
    as_json: bool,
) -> None:
    """Ask MODEL one QUESTION.

    MODEL is what the pool here serves, a job, a directory in Hugging Face format, or a hub name.
    """
    from medley.engines.sampling import Sampling
    from medley.protocol.errors import UserError
    from medley.serving.remote import answer, offered

    if not question.strip():
        raise UserError("the question is empty: give it in quotes after the model")
    sampling = Sampling(max_tokens, temperature, top_p, seed=seed)
    offer = None if local or dtype != "auto" else offered(model)
    if offer is not None:
        _show(offer.name, question, answer(offer, [{"role": "user", "content": question}], sampling), as_json)
    else:
        _show(*_loaded(model, dtype, question, sampling), as_json)


def _loaded(model: str, dtype: str, question: str, sampling: Sampling) -> tuple[str, str, Iterator[Said]]:
    """Name, question and answer of a model in this process."""
    from dataclasses import replace

    from medley.engines.wording import Request
    from medley.serving.remote import Said
    from medley.serving.resolve import open_generator

    resolved, generator = open_generator(model, dtype)
    prompt = generator.prompt_tokens(question)
    request = Request(prompt, replace(sampling, stop=generator.default_stops))
    pieces = (Said(p.text, p.finish, len(prompt), p.generated) for p in generator.stream(request))
    return resolved.name, question, pieces


def _show(name: str, question: str, pieces: Iterator[Said], as_json: bool) -> None:
    from medley.runtimes.clock import SystemClock

    clock = SystemClock()
    started_ns, text, last = clock.now_ns(), [], None
    for last in pieces:
        text.append(last.text)
        if not as_json:
            click.echo(last.text if any(text[:-1]) else last.text.lstrip(), nl=False)
    seconds = (clock.now_ns() - started_ns) / 1e9
    if not as_json:
        click.echo()
        return
    told = {
        "model": name,
        "question": question,
        "answer": "".join(text).strip(),
        "prompt_tokens": last.prompt_tokens if last else 0,
        "tokens": last.tokens if last else 0,
        "finish": last.finish if last else "",
        "seconds": round(seconds, 3),
    }
    click.echo(json.dumps(told, ensure_ascii=False))
