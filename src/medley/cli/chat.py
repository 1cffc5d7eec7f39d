"""`medley chat`: a conversation in the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from medley.engines.generate import Generator

EPILOG = """\b
Example:
  medley chat demo --temperature 0.7
"""

Turn = dict[str, str]


@click.command("chat", epilog=EPILOG)
@click.argument("model")
@click.option("--max-tokens", type=click.IntRange(1), default=256, show_default=True, help="Length of an answer.")
@click.option(
    "--temperature",
    type=click.FloatRange(0, 2),
    default=0.0,
    show_default=True,
    help="0 takes the likeliest.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="The same seed repeats the conversation.")
@click.option("--system", default="", help="What the model is told before the conversation.")
@click.option("--dtype", type=click.Choice(["auto", "fp32", "bf16"]), default="auto", show_default=True)
def command(model: str, max_tokens: int, temperature: float, seed: int, system: str, dtype: str) -> None:
    """Talk with MODEL; /quit or Ctrl-D ends, /new forgets what was said, Ctrl-C stops an answer.

    MODEL is a job, a directory in Hugging Face format, or a hub name.
    """
    from medley.protocol.errors import UserError
    from medley.serving.resolve import open_generator

    resolved, generator = open_generator(model, dtype)
    from medley.engines.sampling import Sampling

    sampling = Sampling(max_tokens, temperature, seed=seed, stop=generator.default_stops)
    opening: list[Turn] = [{"role": "system", "content": system}] if system else []
    turns: list[Turn] = []
    click.echo(f"{resolved.name}: ask something (/quit ends)")
    while (line := _read()) is not None:
        if line == "/new":
            turns = []
        elif line:
            try:
                turns = _exchange(generator, opening, [*turns, {"role": "user", "content": line}], sampling)
            except UserError as error:
                click.echo(f"medley: {error}", err=True)


def _read() -> str | None:
    """The next line; None at the end of the conversation."""
    try:
        line = input("> ").strip()
    except EOFError:
        click.echo()
        return None
    return None if line in {"/quit", "/exit"} else line


def _exchange(generator: Generator, opening: list[Turn], turns: list[Turn], sampling: object) -> list[Turn]:
    """Prints the answer to the last turn; the conversation with it, without what no longer fits."""
    from medley.engines.sampling import Sampling
    from medley.engines.wording import Request

    assert isinstance(sampling, Sampling)
    prompt, turns = fitting(generator, opening, turns, sampling.max_tokens or 0)
    said: list[str] = []
    try:
        for piece in generator.stream(Request(prompt, sampling)):
            said.append(piece.text if any(said) else piece.text.lstrip())
            click.echo(said[-1], nl=False)
    except KeyboardInterrupt:
        click.echo(" …", nl=False)
    click.echo()
    return [*turns, {"role": "assistant", "content": "".join(said).strip()}]


def fitting(
    generator: Generator, opening: list[Turn], turns: list[Turn], answer_tokens: int
) -> tuple[tuple[int, ...], list[Turn]]:
    """Prompt and turns after forgetting the oldest exchanges until an answer has room (at most half the
    context).

    Raises UserError when the last question alone does not fit.
    """
    from medley.protocol.errors import UserError

    room = min(answer_tokens, generator.context // 2)
    while True:
        try:
            prompt = generator.prompt_tokens([*opening, *turns])
        except UserError:
            if len(turns) < 3:
                raise
        else:
            if len(turns) < 3 or len(prompt) + room <= generator.context:
                return prompt, turns
        turns = turns[2:]
