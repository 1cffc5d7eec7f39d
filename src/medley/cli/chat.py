"""`medley chat`: a conversation in the terminal, with a model in this process or with one that the pool here serves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

import click

if TYPE_CHECKING:
    from medley.engines.generate import Generator
    from medley.engines.sampling import Sampling
    from medley.serving.offers import Offer

EPILOG = """\b
Example:
  medley chat demo --temperature 0.7
"""

Turn = dict[str, str]


class Partner(Protocol):
    """Who answers: the pieces of text, and the conversation without what no longer fits the context."""

    @property
    def name(self) -> str: ...

    def answer(self, opening: list[Turn], turns: list[Turn]) -> tuple[Iterator[str], list[Turn]]: ...


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
@click.option("--local", is_flag=True, help="Load the model, even where the pool here serves it.")
def command(model: str, max_tokens: int, temperature: float, seed: int, system: str, dtype: str, local: bool) -> None:
    """Talk with MODEL; /quit or Ctrl-D ends, /new forgets what was said, Ctrl-C stops an answer.

    MODEL is what the pool here serves, a job, a directory in Hugging Face format, or a hub name.
    """
    from medley.engines.sampling import Sampling
    from medley.serving.remote import offered

    sampling = Sampling(max_tokens, temperature, seed=seed)
    offer = None if local or dtype != "auto" else offered(model)
    partner = OverApi(offer, sampling) if offer is not None else InProcess.open(model, dtype, sampling)
    where = f" at {offer.url}" if offer is not None else ""
    click.echo(f"{partner.name}{where}: ask something (/quit ends)")
    _talk(partner, [{"role": "system", "content": system}] if system else [])


def _talk(partner: Partner, opening: list[Turn]) -> None:
    from medley.protocol.errors import Unavailable, UserError

    turns: list[Turn] = []
    while (line := _read()) is not None:
        if line == "/new":
            turns = []
        elif line:
            try:
                turns = _exchange(partner, opening, [*turns, {"role": "user", "content": line}])
            except (UserError, Unavailable) as error:
                click.echo(f"medley: {error}", err=True)


def _read() -> str | None:
    """The next line; None at the end of the conversation."""
    try:
        line = input("> ").strip()
    except EOFError:
        click.echo()
        return None
    return None if line in {"/quit", "/exit"} else line


def _exchange(partner: Partner, opening: list[Turn], turns: list[Turn]) -> list[Turn]:
    """Prints the answer to the last turn; the conversation with it."""
    said: list[str] = []
    try:
        pieces, turns = partner.answer(opening, turns)
        for piece in pieces:
            said.append(piece if any(said) else piece.lstrip())
            click.echo(said[-1], nl=False)
    except KeyboardInterrupt:
        click.echo(" …", nl=False)
    click.echo()
    return [*turns, {"role": "assistant", "content": "".join(said).strip()}]


class InProcess:
    """A model in this process."""

    def __init__(self, name: str, generator: Generator, sampling: Sampling) -> None:
        self.name, self._generator, self._sampling = name, generator, sampling

    @classmethod
    def open(cls, model: str, dtype: str, sampling: Sampling) -> InProcess:
        from dataclasses import replace

        from medley.serving.resolve import open_generator

        resolved, generator = open_generator(model, dtype)
        return cls(resolved.name, generator, replace(sampling, stop=generator.default_stops))

    def answer(self, opening: list[Turn], turns: list[Turn]) -> tuple[Iterator[str], list[Turn]]:
        from medley.engines.wording import Request

        prompt, turns = fitting(self._generator, opening, turns, self._sampling.max_tokens or 0)
        return (piece.text for piece in self._generator.stream(Request(prompt, self._sampling))), turns


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


class OverApi:
    """A model that the pool here serves. How long its context is, only its refusals and short answers tell."""

    def __init__(self, offer: Offer, sampling: Sampling) -> None:
        self.name, self._offer, self._sampling = offer.name, offer, sampling
        self._cramped = False  # the last answer ended with the context

    def answer(self, opening: list[Turn], turns: list[Turn]) -> tuple[Iterator[str], list[Turn]]:
        from itertools import chain

        from medley.serving.remote import TooLong

        if self._cramped and len(turns) > 2:
            turns = turns[2:]
        while True:
            pieces = self._pieces([*opening, *turns])
            try:
                return chain([next(pieces, "")], pieces), turns
            except TooLong:
                if len(turns) < 3:
                    raise
                turns = turns[2:]

    def _pieces(self, messages: list[Turn]) -> Iterator[str]:
        from medley.serving.remote import answer

        for said in answer(self._offer, messages, self._sampling):
            self._cramped = said.finish == "length" and said.tokens < (self._sampling.max_tokens or 0)
            yield said.text
