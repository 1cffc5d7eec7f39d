"""int8 and int4 layers multiply by what they say, lose what their steps allow, and take the bytes that were planned."""

from __future__ import annotations

import pytest
import torch
from tests.tinymodels import LAYERS, tiny
from torch import nn

from medley.engines.stage import StageEngine
from medley.models.quantise import (
    CHUNK,
    GROUP,
    Halves,
    HalvesInt8Linear,
    Int4Linear,
    Int8Linear,
    linear_nbytes,
    multiplies_bytes,
    quantiser,
)
from medley.models.random_weights import RandomTensors
from medley.models.slices import Parts, sizes
from medley.protocol.errors import UserError
from medley.protocol.stages.words import Row


def layer(rows: int, columns: int, bias: bool = False) -> nn.Linear:
    torch.manual_seed(rows)
    made = nn.Linear(columns, rows, bias).bfloat16()
    made.weight.data *= torch.rand(rows, 1) * 3
    return made.requires_grad_(False)


@pytest.mark.parametrize("rows", [48, 50, CHUNK + 50])
@pytest.mark.parametrize("tokens", [1, 3, 40])
@pytest.mark.parametrize("bias", [False, True])
@torch.inference_mode()
def test_int8_multiplies_by_its_steps_and_loses_half_a_step(rows: int, tokens: int, bias: bool) -> None:
    linear = layer(rows, 128, bias)
    near = Int8Linear(linear).dequantised()
    step = linear.weight.float().abs().amax(1, keepdim=True) / 127
    assert ((near - linear.weight.float()).abs() <= 0.51 * step + 0.004 * linear.weight.float().abs()).all()
    x = torch.randn(2, tokens, 128).bfloat16()
    x[0, 0] = 0
    expected = x.float() @ near.t() + (linear.bias.float() if bias else 0)
    for made in (Int8Linear(linear), *([HalvesInt8Linear(linear, Halves())] if multiplies_bytes() else [])):
        torch.testing.assert_close(made(x).float(), expected, rtol=2e-2, atol=2e-2)


@pytest.mark.skipif(not multiplies_bytes(), reason="needs a processor that multiplies bytes (AVX512-VNNI)")
@torch.inference_mode()
def test_in_halves_activations_keep_sixteen_bits() -> None:
    linear = layer(48, 256)
    near, halves = Int8Linear(linear).dequantised(), Halves()
    made = HalvesInt8Linear(linear, halves)
    x = torch.randn(5, 256) * torch.tensor([1e-3, 1.0, 50.0, 1.0, 0.0])[:, None]
    x[3, 7] = 300.0  # beside which the others are small
    expected = x @ near.t()
    lost = (made(x) - expected).abs().amax(1)
    allowed = x.abs().amax(1) / 65024 * near.abs().sum(1).max()
    assert (lost <= allowed + 1e-5 * expected.abs().amax(1)).all()
    assert halves.of(x)[0] is halves.of(x)[0]
    assert torch.equal(made(x[1:2]), made(x)[1:2])


@pytest.mark.parametrize("rows", [48, 50, CHUNK + 50])
@pytest.mark.parametrize("tokens", [1, 3, 40])
@torch.inference_mode()
def test_int4_loses_half_a_step_of_its_group(rows: int, tokens: int) -> None:
    linear = layer(rows, 4 * GROUP)
    made = Int4Linear(linear)
    # Its rows, read out with the kernel itself.
    near = made(torch.eye(4 * GROUP).bfloat16()).float().t()
    grouped = linear.weight.float().reshape(rows, -1, GROUP)
    step = (grouped.amax(-1) - grouped.amin(-1)) / 15
    lost = (near.reshape(grouped.shape) - grouped).abs().amax(-1)
    assert (lost <= 0.56 * step + 0.01 * grouped.abs().amax(-1)).all()
    x = torch.randn(tokens, 4 * GROUP).bfloat16()
    torch.testing.assert_close(made(x).float(), x.float() @ near.t(), rtol=3e-2, atol=3e-2)


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_a_stage_of_quantised_layers_answers_nearly_the_same_in_the_planned_bytes(kind: str) -> None:
    config = tiny("qwen2", hidden_size=128, intermediate_size=256).config
    parts = Parts(config, torch.bfloat16, transform=quantiser(kind))
    weights = RandomTensors(parts.shapes(), 1)
    exact = StageEngine(config, torch.bfloat16, 1 << 20)
    near = StageEngine(config, torch.bfloat16, 1 << 20, quantiser(kind))
    hidden = []
    for engine in (exact, near):
        engine.load(weights, 0, LAYERS)
        engine.open(1)
        engine.forward([Row(1, 0, 9, 0)], list(range(3, 12)), 0, LAYERS)
        hidden.append(engine.export_kv(1, range(LAYERS)).float().flatten())
    assert torch.cosine_similarity(hidden[0], hidden[1], dim=0) > (0.999 if kind == "int8" else 0.97)
    told = sizes(config, torch.bfloat16, lambda linear: linear_nbytes(linear, kind))
    made = parts.layer(weights, 0)
    packed = sum(m.nbytes for m in made.modules() if isinstance(m, HalvesInt8Linear))
    assert told.layer_nbytes == packed + sum(tensor.nbytes for tensor in (*made.parameters(), *made.buffers()))
    assert told.layer_nbytes < (0.56 if kind == "int8" else 0.34) * sizes(config, torch.bfloat16).layer_nbytes


def test_shapes_that_no_kernel_takes_stay_and_unknown_words_are_named() -> None:
    transform = quantiser("int4")
    assert transform is not None
    odd = layer(16, GROUP + 8)
    assert transform(odd) is odd
    assert linear_nbytes(odd, "int4") == odd.weight.nbytes
    assert quantiser("none") is None
    with pytest.raises(UserError, match="did you mean 'int8'"):
        quantiser("int9")
