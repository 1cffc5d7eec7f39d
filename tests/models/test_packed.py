"""A window computes the same alone, padded, and packed among strangers, for both families that Medley proves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM, LlamaConfig, OPTConfig

from medley.data.pack import IGNORED, alone, arrays, lengths, pack
from medley.data.template import Window
from medley.models.attention import ATTENTION
from medley.models.loss import Batch, hidden_states, segment_mask, token_losses


def llama(**more: Any) -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=99, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, **more,
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config, attn_implementation=ATTENTION)


def opt(**more: Any) -> Any:
    torch.manual_seed(0)
    config = OPTConfig(
        vocab_size=99, hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=64, word_embed_proj_dim=32, dropout=0.0, **more,
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config, attn_implementation=ATTENTION)


FAMILIES = pytest.mark.parametrize("make", [llama, opt])


def batch_of(rows: list[Any], by_lengths: bool = False) -> Batch:
    made = arrays(rows)
    tokens, positions, segments, labels = map(
        torch.from_numpy, (made.tokens, made.positions, made.segments, made.labels)
    )
    mask, pieces = (None, lengths(rows)) if by_lengths else (segment_mask(segments), ())
    return Batch(tokens, positions, labels, mask, pieces, int((segments > 0).sum()))


def some_windows() -> list[Window]:
    draw = torch.Generator().manual_seed(1)
    sizes = (5, 17, 9, 30, 3, 22)
    return [Window(tuple(torch.randint(3, 99, (n,), generator=draw).tolist()), n // 2) for n in sizes]


@FAMILIES
@pytest.mark.parametrize("by_lengths", [True, False])
def test_packed_logits_are_the_logits_of_each_window_alone(make: Any, by_lengths: bool) -> None:
    network, windows = make().eval(), some_windows()
    rows = pack(windows, 40)
    assert max(map(len, rows)) > 1
    packed = network.get_output_embeddings()(hidden_states(network, batch_of(rows, by_lengths)))
    for number, row in enumerate(rows):
        at = 0
        for window in row:
            alone_ = network(input_ids=torch.tensor([window.tokens])).logits[0]
            torch.testing.assert_close(packed[number, at : at + len(window.tokens)], alone_, atol=1e-5, rtol=1e-5)
            at += len(window.tokens)


@FAMILIES
def test_packed_and_padded_batches_have_the_same_loss_and_gradient(make: Any) -> None:
    windows, gradients, sums = some_windows(), [], []
    for rows, by_lengths in ((pack(windows, 40), True), (pack(windows, 40), False), (alone(windows), False)):
        network = make()
        total, count, correct = token_losses(network, batch_of(rows, by_lengths))
        total.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None]))
        sums.append((float(total.detach()), count, int(correct)))
    for other in (0, 1):
        assert sums[other][1:] == sums[2][1:]
        assert sums[other][0] == pytest.approx(sums[2][0], rel=1e-5)
        torch.testing.assert_close(gradients[other], gradients[2], atol=1e-4, rtol=1e-4)


@FAMILIES
@pytest.mark.parametrize("tied", [True, False])
def test_the_loss_is_the_cross_entropy_of_answers_only(make: Any, tied: bool) -> None:
    batch = batch_of(pack(some_windows(), 40))
    network, reference = make(tie_word_embeddings=tied), make(tie_word_embeddings=tied)
    total, count, _ = token_losses(network, batch)
    (total * 0.5).backward()
    logits = reference(input_ids=batch.tokens, position_ids=batch.positions, attention_mask=batch.mask).logits
    expected = functional.cross_entropy(
        logits.flatten(0, 1), batch.labels.flatten(), ignore_index=IGNORED, reduction="sum"
    )
    (expected * 0.5).backward()
    assert count == sum(w.labels for w in some_windows())
    torch.testing.assert_close(total, expected)
    for mine, theirs in zip(network.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, atol=1e-5, rtol=1e-4)


def test_families_that_scale_their_logits_go_the_ordinary_way() -> None:
    batch = batch_of(pack(some_windows(), 40))
    network = llama()
    expected = token_losses(network, batch)
    network.config.logit_scale = 2.0
    got = token_losses(network, batch)
    torch.testing.assert_close(got[0], expected[0])
    assert (got[1], int(got[2])) == (expected[1], int(expected[2]))
