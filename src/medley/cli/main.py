"""The `medley` command: a table of subcommands, each imported only when it is called, and the process's
outermost edge.

Promises: `medley --help` imports no command, so neither torch, transformers nor grpc; a person's mistake is
one sentence on stderr and exit status 2, never a traceback; Ctrl-C is one line and status 130. A bug keeps
its traceback.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import click

from medley.protocol.errors import Unavailable, UserError, did_you_mean
from medley.protocol.version import __version__

MISTAKE = 2
INTERRUPTED = 130


@dataclass(frozen=True, slots=True)
class Entry:
    """Where a command lives ("module:attribute") and the line `medley --help` shows for it."""

    target: str
    help: str


COMMANDS: dict[str, Entry] = {
    "demo": Entry("medley.cli.demo:command", "Train a small model on this machine, kill a worker, ask questions."),
    "up": Entry("medley.cli.up:command", "Start a coordinator that other machines can join."),
    "join": Entry("medley.cli.join:command", "Lend this machine to a coordinator."),
    "token": Entry("medley.cli.token:command", "Create and list the tokens that let machines join."),
    "train": Entry("medley.cli.train:command", "Run a training job from a YAML or JSON file."),
    "whatif": Entry("medley.cli.whatif:command", "Say what a job would take on these machines, or on others."),
    "jobs": Entry("medley.cli.jobs:command", "List jobs; show, follow, cancel or resume one."),
    "status": Entry("medley.cli.status:command", "Say how the coordinator and its jobs are doing."),
    "nodes": Entry("medley.cli.nodes:command", "List the machines that joined, and what each can do."),
    "explain": Entry("medley.cli.explain:command", "Tell the decisions about a job or a machine, with reasons."),
    "simulate": Entry("medley.cli.simulate:command", "Simulate pools of machines: experiments, and checks."),
    "replay": Entry("medley.cli.replay:command", "Show the events of a simulated run, line by line."),
    "doctor": Entry("medley.cli.doctor:command", "Check this machine: what works, what does not, what to do."),
    "ask": Entry("medley.cli.ask:command", "Ask a model one question."),
    "chat": Entry("medley.cli.chat:command", "Talk with a model."),
    "serve": Entry("medley.cli.serve:command", "Serve a model over the OpenAI API."),
    "plan": Entry("medley.cli.plan:command", "Say which machines would hold which layers of a model."),
    "eval": Entry("medley.cli.eval:command", "Score a model on questions with known answers."),
}


class LazyGroup(click.Group):
    """A click group whose subcommands are imported on first use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        entry = COMMANDS.get(cmd_name)
        return None if entry is None else _load(entry.target)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            raise UserError(f"no command '{args[0]}': {did_you_mean(args[0], COMMANDS)}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.help) for name, entry in COMMANDS.items()])


def _load(target: str) -> click.Command:
    module_name, _, attribute = target.partition(":")
    command = getattr(importlib.import_module(module_name), attribute)
    assert isinstance(command, click.Command)
    return command


@click.command(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="medley", message="%(prog)s %(version)s")
def medley() -> None:
    """Train, fine-tune and serve language models on the machines you already have.

    Start with `medley demo`.
    """


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command and leave with its exit status: 0, 2 for a mistake, 130 for Ctrl-C, or what it chose
    itself.
    """
    sys.exit(run(sys.argv[1:] if argv is None else argv))


def run(argv: Sequence[str]) -> int:
    """The exit status of `medley *argv`. Every error a person can cause has become one sentence on stderr."""
    try:
        status = medley.main(list(argv), prog_name="medley", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as shown:
        click.echo(shown.format_message(), err=True)
        return MISTAKE
    except click.ClickException as wrong:
        return _refuse(_usage_sentence(wrong))
    except (UserError, Unavailable) as wrong:
        return _refuse(str(wrong))
    except (KeyboardInterrupt, click.Abort):
        click.echo("\nmedley: interrupted", err=True)
        return INTERRUPTED
    return status if isinstance(status, int) else 0


def _refuse(sentence: str) -> int:
    click.echo(f"medley: {sentence}", err=True)
    return MISTAKE


def _usage_sentence(wrong: click.ClickException) -> str:
    match wrong:
        case click.NoSuchOption(ctx=context) if context is not None:
            return f"no option '{wrong.option_name}': {did_you_mean(wrong.option_name, _options(context))}"
        case click.UsageError(ctx=context) if context is not None:
            return f"{_lowered(wrong)} (see `{context.command_path} --help`)"
        case _:
            return _lowered(wrong)


def _options(context: click.Context) -> list[str]:
    return [name for parameter in context.command.get_params(context) for name in parameter.opts if name[:1] == "-"]


def _lowered(wrong: click.ClickException) -> str:
    sentence = " ".join(wrong.format_message().split()).rstrip(".")
    return sentence[:1].lower() + sentence[1:]
