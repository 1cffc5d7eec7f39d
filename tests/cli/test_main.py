"""The outermost edge: exit statuses, one sentence for a mistake, and a traceback only for a bug."""

from __future__ import annotations

import click
import pytest

from medley import __version__
from medley.cli import main as edge
from medley.cli.main import COMMANDS, INTERRUPTED, MISTAKE, Entry, run
from medley.protocol.errors import Unavailable, UserError


@click.command("pick")
@click.option("--steps", type=int, required=True)
def pick(steps: int) -> None:
    raise AssertionError("never reached")


@click.command("fail")
@click.argument("how")
def fail(how: str) -> None:
    match how:
        case "mistake":
            raise UserError("job.yaml, line 3: no key 'stepps': did you mean 'steps'?")
        case "absent":
            raise Unavailable("no coordinator answers at 127.0.0.1:7700")
        case "ctrl-c":
            raise KeyboardInterrupt
        case "status":
            click.get_current_context().exit(5)
        case "bug":
            raise ZeroDivisionError


@pytest.fixture(autouse=True)
def _extra_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    commands = {"pick": pick, "fail": fail}
    monkeypatch.setattr(edge, "_load", lambda target: commands[target])
    for name in commands:
        monkeypatch.setitem(COMMANDS, name, Entry(name, "for this test"))


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"  {name} " in shown and entry.help in shown for name, entry in COMMANDS.items())


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"medley {__version__}\n"


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["trian"], "no command 'trian': did you mean 'train'?"),
        (["--hlep"], "no option '--hlep': did you mean '--help'?"),
        (["pick", "--stesp", "3"], "no option '--stesp': did you mean '--steps'?"),
        (["pick"], "missing option '--steps' (see `medley pick --help`)"),
        (
            ["pick", "--steps", "x"],
            "invalid value for '--steps': 'x' is not a valid integer (see `medley pick --help`)",
        ),
        (["fail", "mistake"], "job.yaml, line 3: no key 'stepps': did you mean 'steps'?"),
        (["fail", "absent"], "no coordinator answers at 127.0.0.1:7700"),
    ],
)
def test_a_mistake_is_one_sentence(argv: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(argv) == MISTAKE
    shown = capsys.readouterr()
    assert shown.err == f"medley: {sentence}\n"
    assert shown.out == ""


def test_ctrl_c_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["fail", "ctrl-c"]) == INTERRUPTED
    assert capsys.readouterr().err.strip() == "medley: interrupted"


def test_a_command_may_choose_its_status() -> None:
    assert run(["fail", "status"]) == 5


def test_a_bug_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        run(["fail", "bug"])


def test_no_command_shows_help_and_is_a_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([]) == MISTAKE
    assert "Commands:" in capsys.readouterr().err
