"""`medley serve` over machines: what cannot be is one sentence and status 2, before anything is loaded or started."""

from __future__ import annotations

import socket
from pathlib import Path

import click
import pytest
from tests.cli.canned import Canned
from tests.cli.conftest import Cli
from tests.serving.conftest import byte_tokenizer
from tests.tinymodels import LAYERS, saved, tiny

from medley.cli import serve


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    directory = saved(tiny("llama"), tmp_path_factory.mktemp("models") / "tiny")
    byte_tokenizer().save_pretrained(str(directory))
    return str(directory)


@pytest.fixture
def pool(canned: Canned) -> Canned:
    """With what a front asks of a coordinator's status besides."""
    canned.answers["status"] = {**canned.answers["status"], "encrypts": False, "reachable": "127.0.0.1"}  # type: ignore[dict-item]
    return canned


def refused(cli: Cli, *words: str) -> str:
    status, out, err = cli("serve", *words, "--port", "0")
    assert (status, out) == (2, "")
    assert err.count("\n") == 1, err
    return err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--weights", "int9"], "'int9' is not one of"),
        (["--wire", "fp8"], "'fp8' is not one of"),
        (["--objective", "speed"], "'speed' is not one of"),
        (["--survive", "2"], "2 is not in the range"),
        (["--local-stages", "5"], f"5 stages are more than the model's {LAYERS} layers"),
        (["--local-stages", "2", "--pin", "worker-1=3"], f"gives 3 layers to worker-1, but tiny in bf16 has {LAYERS}"),
        (["--local-stages", "2", "--pin", "worker-1=2,worker-3=2"], "--pin names 'worker-3', which is no machine here"),
        (["--local-stages", "2", "--pin", "worker-1=2,worker-1=2"], "--pin names 'worker-1' twice"),
        (["--local-stages", "2", "--pin", "worker-1"], "is not MACHINE=LAYERS"),
        (["--local-stages", "1", "--survive", "1"], "--local-stages 2"),
        (["--local-stages", "2", "--pool"], "leave out one of the two"),
        (["--local-stages", "2", "--machines", "desk"], "--machines names machines of a pool"),
        (["--pool"], "start one with 'medley up'"),
        (["--pin", "desk=4"], "--pin is for a split model: add --pool or --local-stages N"),
        (["--kv-tokens", "512"], "--kv-tokens is for a split model"),
        (["--no-draft"], "--draft is for a split model"),
        (["--draft-model", "./small"], "--draft-model is for a split model: add --pool or --local-stages N"),
        (["--local-stages", "2", "--no-draft", "--draft-model", "./small"], "--no-draft wants none"),
        (["--local-stages", "2", "--draft-model", "./small"], "--draft-model: there is no directory './small'"),
        (["--local-stages", "2", "--host", "0.0.0.0"], "it needs a key"),
    ],
    ids=lambda one: " ".join(one) if isinstance(one, list) else "",
)  # fmt: skip
def test_a_mistake_is_one_sentence(cli: Cli, model: str, words: list[str], says: str) -> None:
    assert says in refused(cli, model, *words)


def test_a_draft_model_of_another_vocabulary_is_said(cli: Cli, model: str, tmp_path: Path) -> None:
    from medley.models.tokenizer import train_tokenizer

    other = saved(tiny("llama"), tmp_path / "other")
    train_tokenizer(["some text"], 300, other)
    says = refused(cli, model, "--local-stages", "2", "--draft-model", str(other))
    assert "--draft-model 'other' has another vocabulary than tiny: token 0 is '<s>' there and '<pad>' here" in says


def test_nothing_to_serve_is_said(cli: Cli) -> None:
    assert "medley serve MODEL" in refused(cli)


def test_a_model_that_is_not_there_is_said(cli: Cli) -> None:
    assert "there is no directory './nowhere'" in refused(cli, "./nowhere", "--local-stages", "2")


def test_a_family_that_has_no_layers_to_part_is_said(cli: Cli, tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=64, n_positions=32, n_embd=16, n_layer=2, n_head=2)
    GPT2LMHeadModel(config).save_pretrained(str(tmp_path / "gpt2"))
    assert "family 'gpt2'" in refused(cli, str(tmp_path / "gpt2"), "--local-stages", "2")


def test_a_port_that_is_taken_is_said_before_anything_starts(cli: Cli, model: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        status, _, err = cli("serve", model, "--local-stages", "2", "--port", str(port))
    assert status == 2
    assert err.startswith(f"medley: port {port} on 127.0.0.1 is in use") and err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--machines", "worker-2"], "--machines names 'worker-2', which is no machine here; did you mean 'worker-1'?"),
        (["--pin", "desk=4"], "--pin names 'desk', which is no machine here; allowed: worker-1"),
        (["--pin", "worker-1=3"], f"gives 3 layers to worker-1, but tiny in bf16 has {LAYERS}"),
    ],
    ids=lambda one: " ".join(one) if isinstance(one, list) else "",
)
def test_machines_are_those_of_the_pool(cli: Cli, pool: Canned, model: str, words: list[str], says: str) -> None:
    assert says in refused(cli, model, "--pool", *words)


def test_pinned_machines_are_among_those_that_are_named(cli: Cli, pool: Canned, model: str) -> None:
    """Nobody else would ever be asked for, so the serving would wait for ever."""
    node = pool.answers["status"]["nodes"][0]  # type: ignore[index]
    pool.answers["status"]["nodes"] = [node, {**node, "node": "desk"}]  # type: ignore[index]
    words = ("--machines", "worker-1", "--pin", f"worker-1=1,desk={LAYERS - 1}")
    assert "--pin names 'desk', which --machines leaves out" in refused(cli, model, "--pool", *words)


def test_what_the_coordinator_refuses_is_one_sentence_too(cli: Cli, pool: Canned, model: str) -> None:
    assert "a coordinator cannot be asked 'serve_begin'" in refused(cli, model, "--pool")


def test_every_option_is_explained(repository: Path) -> None:
    text = (repository / "docs" / "serve.md").read_text(encoding="utf-8")
    options = [name for p in serve.command.params for name in (*p.opts, *p.secondary_opts) if name.startswith("--")]
    assert [name for name in options if f"{name}`" in text or f"{name} " in text] == options
    assert [p.name for p in serve.command.params if isinstance(p, click.Option) and not p.help] == []
