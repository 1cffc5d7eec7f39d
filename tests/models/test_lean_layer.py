"""A lean layer's pieces give the numbers of transformers' own, and hold every weight once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.tinymodels import LAYERS, tiny
from torch import nn

from medley.engines.stage import StageEngine
from medley.models.lean_layer import joined, normed, turn, turning_of
from medley.models.packed_linear import ROWS, with_rows
from medley.models.random_weights import RandomTensors
from medley.models.slices import Parts
from medley.protocol.stages.words import Row

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])


@DTYPES
@pytest.mark.parametrize("shape", [(1, 1, 64), (1, 5, 64), (7, 6, 16)])
@torch.inference_mode()
def test_norms_are_those_of_transformers(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    torch.manual_seed(1)
    theirs = LlamaRMSNorm(shape[-1], eps=1e-5).to(dtype)
    theirs.weight.data.normal_(1, 0.1)
    for scale in (0.0, 1e-4, 1.0, 1e4):
        x = (torch.randn(shape) * scale).to(dtype)
        # Its sum of squares in another order: at most the last digit.
        torch.testing.assert_close(normed(x, theirs.weight, 1e-5), theirs(x))


@torch.inference_mode()
def test_a_token_that_is_zero_has_a_norm_without_epsilon() -> None:
    assert torch.equal(normed(torch.zeros(1, 1, 8), torch.ones(8), 0.0), torch.zeros(1, 1, 8))


@DTYPES
@torch.inference_mode()
def test_heads_are_turned_as_transformers_does(dtype: torch.dtype) -> None:
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    torch.manual_seed(2)
    model: Any = tiny("llama")
    rotary = model.model.rotary_emb
    heads_TAD = torch.randn(9, 6, 8).to(dtype)
    positions_1T = torch.tensor([[0, 1, 2, 40, 41, 7, 600, 3, 5]])
    cos, sin = rotary(heads_TAD, position_ids=positions_1T)
    theirs, _ = apply_rotary_pos_emb(*[heads_TAD.transpose(0, 1)[None]] * 2, cos, sin)
    mine = turn(heads_TAD, turning_of(rotary, heads_TAD, positions_1T))
    torch.testing.assert_close(mine, theirs[0].transpose(0, 1))


@pytest.mark.parametrize("bias", [False, True])
def test_joined_layers_are_one_that_took_their_weights(bias: bool) -> None:
    torch.manual_seed(3)
    parts = [nn.Linear(8, rows, bias) for rows in (4, 2, 6)]
    x = torch.randn(3, 8)
    expected = torch.cat([part(x) for part in parts], -1)
    torch.testing.assert_close(joined(*parts)(x), expected)
    assert not any(list(part.parameters()) for part in parts)


@pytest.mark.parametrize("rows", range(1, ROWS + 2))
def test_few_rows_are_repeated_behind_themselves(rows: int) -> None:
    few = torch.randn(rows, 4)
    many = with_rows(few)
    assert len(many) == max(rows, ROWS)
    assert torch.equal(many[:rows], few)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "mistral"])
def test_a_computing_layer_holds_each_number_of_the_checkpoint_once(family: str) -> None:
    config = tiny(family).config
    weights = RandomTensors(Parts(config, torch.float32).shapes(), 1)
    bare = sum(p.numel() for p in Parts(config, torch.float32).bare_layer(0).parameters())
    made = Parts(config, torch.float32, device=torch.device("cpu")).layer(weights, 0)
    more = 16 * 6 - 2 * 16 if family == "qwen3" else 0  # the norm of heads, written out for each head
    assert sum(p.numel() for p in made.parameters()) == bare + more


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_a_prompt_in_bf16_leaves_the_same_kv_token_by_token(family: str) -> None:
    config = tiny(family, hidden_size=64).config
    engine = StageEngine(config, torch.bfloat16, 1 << 20)
    engine.load(RandomTensors(Parts(config, torch.bfloat16).shapes(), 1), 0, LAYERS)
    ids = list(range(3, 15))
    for request in (1, 2):
        engine.open(request)
    engine.forward([Row(1, 0, len(ids), 0)], ids, 0, LAYERS)
    for at, token in enumerate(ids):
        engine.forward([Row(2, at, 1, 0)], [token], 0, LAYERS)
    one, other = (engine.export_kv(request, range(LAYERS)).float() for request in (1, 2))
    assert torch.cosine_similarity(one.flatten(), other.flatten(), dim=0) > 0.9999
