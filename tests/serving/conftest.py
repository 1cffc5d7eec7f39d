"""A tiny random Llama that every serving test shares, and a server of it on a real socket."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
import torch
import uvicorn
from starlette.types import ASGIApp
from tests.waiting import until
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from medley.engines.generate import Generator
from medley.serving.engine import Engine
from medley.serving.guard import Guard
from medley.serving.server import bind, url_of

CONTEXT = 256


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Every byte is a token: no training, any text."""
    vocabulary = ["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    raw = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(vocabulary)}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>")


def tiny_llama(context: int = CONTEXT) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=258,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=context,
            bos_token_id=0,
            eos_token_id=1,
        )
    )


@pytest.fixture(scope="session")
def generator() -> Generator:
    return Generator.of(tiny_llama(), byte_tokenizer(), "tiny")


@dataclass(frozen=True, slots=True)
class Served:
    """Where a server is, and its engine."""

    url: str
    engine: Engine


@contextmanager
def serving(app: ASGIApp) -> Iterator[str]:
    """The address of `app` on a free port, served by a thread until the block ends."""
    sock = bind("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="on", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]})
    thread.start()
    try:
        until(lambda: server.started, what="the server")
        yield url_of(sock)
    finally:
        server.should_exit = True
        thread.join(20)
        sock.close()


@pytest.fixture(scope="session")
def served(generator: Generator) -> Iterator[Served]:
    from medley.serving.api import make_app

    engine = Engine(generator)
    with serving(Guard(make_app(generator, "tiny", engine))) as url:
        yield Served(url, engine)
