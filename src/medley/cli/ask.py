"""`medley ask`: one question, one answer, printed as it comes."""

from __future__ import annotations

import json

import click

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
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON instead of text.")
def command(
    model: str,
    question: str,
    max_tokens: int,
    temperature: float,
    top_p: float,
    seed: int,
    dtype: str,
    as_json: bool,
) -> None:
    """Ask MODEL one QUESTION.

    MODEL is a job, a directory in Hugging Face format, or a hub name.
    """
    from medley.protocol.errors import UserError
    from medley.serving.resolve import open_generator

    if not question.strip():
        raise UserError("the question is empty: give it in quotes after the model")
    resolved, generator = open_generator(model, dtype)
    from medley.engines.sampling import Sampling
    from medley.engines.wording import Request
    from medley.runtimes.clock import SystemClock

    prompt = generator.prompt_tokens(question)
    sampling = Sampling(max_tokens, temperature, top_p, seed=seed, stop=generator.default_stops)
    clock = SystemClock()
    started_ns, text, last = clock.now_ns(), [], None
    for last in generator.stream(Request(prompt, sampling)):
        text.append(last.text)
        if not as_json:
            click.echo(last.text if any(text[:-1]) else last.text.lstrip(), nl=False)
    seconds = (clock.now_ns() - started_ns) / 1e9
    if not as_json:
        click.echo()
        return
    click.echo(
        json.dumps(
            {
                "model": resolved.name,
                "question": question,
                "answer": "".join(text).strip(),
                "prompt_tokens": len(prompt),
                "tokens": last.generated if last else 0,
                "finish": last.finish if last else "",
                "seconds": round(seconds, 3),
            },
            ensure_ascii=False,
        )
    )
