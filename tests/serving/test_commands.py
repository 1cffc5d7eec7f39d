"""`ask`, `chat`, `eval` and `serve` as a person runs them."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from pathlib import Path

import openai
import pytest
from click.testing import CliRunner
from tests.processes import running

from medley.cli import ask, chat, eval, serve
from medley.cli.main import run
from medley.engines.generate import Generator


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, generator: Generator) -> str:
    directory = tmp_path_factory.mktemp("state") / "exports" / "tiny"
    generator.model.save_pretrained(directory)
    generator.tokenizer.save_pretrained(directory)
    return str(directory)


@pytest.fixture(autouse=True)
def home(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDLEY_HOME", str(Path(model).parents[1]))


def test_ask_a_job(generator: Generator, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["ask", "tiny", "What is a fever?", "--max-tokens", "10", "--dtype", "fp32", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["answer"] == generator.answer("What is a fever?", 10)
    assert told["finish"] in {"stop", "length"} and told["tokens"] <= 10
    assert run(["ask", "tiny", "What is a fever?", "--max-tokens", "10", "--dtype", "fp32"]) == 0
    assert capsys.readouterr().out.strip() == told["answer"]


def test_chat_remembers_and_ends(model: str, generator: Generator) -> None:
    arguments = [model, "--max-tokens", "6", "--dtype", "fp32"]
    told = CliRunner().invoke(chat.command, arguments, input="What is a fever?\n\n/new\nAnd a cold?\n/quit\nnever\n")
    assert told.exit_code == 0
    assert generator.answer("What is a fever?", 6) in told.output
    assert generator.answer("And a cold?", 6) in told.output
    assert CliRunner().invoke(chat.command, arguments, input="").exit_code == 0


def test_chat_forgets_the_oldest_when_the_context_is_full(generator: Generator) -> None:
    turns = [{"role": r, "content": f"{r} {i} " * 6} for i in range(9) for r in ("user", "assistant")]
    prompt, kept = chat.fitting(generator, [], [*turns, {"role": "user", "content": "last"}], 64)
    assert len(prompt) + 64 <= generator.context
    assert 1 < len(kept) < len(turns) and kept[0]["role"] == "user" and kept[-1]["content"] == "last"


def test_eval_prints_figures_and_writes_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, report = tmp_path / "q.jsonl", tmp_path / "report.json"
    data.write_text('{"question": "What?", "answer": "That."}\n' * 3)
    options = ["--data", str(data), "--max-tokens", "4", "--bootstrap", "20", "--limit", "2"]
    assert run(["eval", "tiny", *options, "--json", str(report)]) == 0
    assert "perplexity" in capsys.readouterr().out
    assert json.loads(report.read_text())["examples"] == 2
    assert run(["eval", "tiny", *options, "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["loss"]["value"] > 0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["ask", "tony", "Why?"], "did you mean 'tiny'?"),
        (["ask", "tiny", " "], "the question is empty"),
        (["ask", "tiny", "why " * 300], "context of 256 tokens"),
        (["ask", "./nowhere", "Why?"], "no directory"),
        (["ask", "tiny", "Why?", "--temperature", "9"], "--temperature"),
        (["eval", "tiny", "--data", "nowhere.jsonl"], "nowhere.jsonl"),
        (["serve", "tiny", "--host", "0.0.0.0"], "--api-key"),
        (["serve", "tony"], "did you mean 'tiny'?"),
    ],
)
def test_wrong_use_is_one_sentence(arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [*arguments, "--port", "0"] if arguments[0] == "serve" else arguments
    assert run(arguments) == 2
    told = capsys.readouterr().err.strip()
    assert sentence in told and "Traceback" not in told and "\n" not in told


def test_port_in_use_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert run(["serve", "tiny", "--port", port]) == 2
    assert f"port {port} on 127.0.0.1 is in use" in capsys.readouterr().err


@pytest.mark.parametrize("command", [ask.command, chat.command, eval.command, serve.command])
def test_help_has_an_example(command: object) -> None:
    told = CliRunner().invoke(command, ["--help"])  # type: ignore[arg-type]
    assert told.exit_code == 0 and "medley " in told.output.split("Example")[1]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGTERM for others")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_serve_answers_and_stops_cleanly(number: signal.Signals) -> None:
    code = "from medley.cli.main import main; main()"
    command = [sys.executable, "-c", code, "serve", "tiny", "--port", "0", "--json", "--api-key", "auto"]
    with running(command, complains=True) as process:
        assert process.stdout is not None
        told = json.loads(process.stdout.readline())
        with openai.OpenAI(base_url=told["url"], api_key=told["api_key"], max_retries=0) as client:
            assert client.completions.create(model="tiny", prompt="Hi", max_tokens=2).choices
        with openai.OpenAI(base_url=told["url"], api_key="wrong", max_retries=0) as stranger:
            with pytest.raises(openai.AuthenticationError):
                stranger.models.list()
        process.send_signal(number)
        _, complaints = process.communicate(timeout=30)
        assert (process.returncode, complaints) == (0, "")
