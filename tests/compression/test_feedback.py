"""Error feedback: nothing that a codec drops is ever lost."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medley.compression import CODEC_NAMES, make_codec
from medley.compression.codec import bytes_of
from medley.compression.feedback import ErrorFeedback, decode_update, encode_update
from medley.protocol.layout import Layout, TensorSpec, make_layout
from medley.protocol.spec import Compression


def layout() -> Layout:
    return make_layout([TensorSpec("w", (90, 100)), TensorSpec("b", (37,)), TensorSpec("v", (4100,))], 5000)


def updates(count: int, numel: int, seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(numel, generator=generator) for _ in range(count)]


def send(flat: torch.Tensor, plan: Layout, kind: str, feedback: ErrorFeedback | None) -> torch.Tensor:
    c = make_codec(Compression(kind=kind))
    payloads = encode_update(flat, plan.blocks, c, feedback)
    assert {i: p.numel() for i, p in payloads.items()} == {b.index: c.nbytes(b.numel) for b in plan.blocks}
    return decode_update({i: bytes_of(p) for i, p in payloads.items()}, plan.blocks, c, torch.empty(plan.numel))


@given(st.sampled_from(CODEC_NAMES), st.integers(1, 6), st.integers(0, 99))
@settings(deadline=None, max_examples=40)
def test_what_was_sent_and_the_residual_add_up_to_what_was_meant(kind: str, count: int, seed: int):
    plan = layout()
    feedback = ErrorFeedback(plan.numel)
    meant = updates(count, plan.numel, seed)
    seen = [send(x, plan, kind, feedback) for x in meant]
    total = torch.stack(seen).sum(0) + feedback.residual
    assert torch.allclose(total, torch.stack(meant).sum(0), atol=2e-5)


def test_with_decay_the_identity_holds_for_each_step():
    plan = layout()
    feedback = ErrorFeedback(plan.numel, decay=0.5)
    for x in updates(4, plan.numel, 1):
        before = feedback.residual.clone()
        seen = send(x, plan, "topk", feedback)
        assert torch.allclose(seen + feedback.residual, 0.5 * before + x, atol=1e-6)


def test_every_coordinate_of_a_constant_gradient_arrives_in_the_end():
    """Top-k alone would send the same 1/64 forever."""
    plan = layout()
    feedback = ErrorFeedback(plan.numel)
    gradient = updates(1, plan.numel, 3)[0]
    steps = 400
    seen = sum(send(gradient, plan, "topk", feedback) for _ in range(steps)) / steps
    assert (seen - gradient).norm() < 0.4 * gradient.norm()
    alone = send(gradient, plan, "topk", None)
    assert (alone - gradient).norm() > 0.8 * gradient.norm()


def test_the_update_itself_is_left_alone():
    plan = layout()
    x = updates(1, plan.numel, 4)[0]
    before = x.clone()
    send(x, plan, "topk", ErrorFeedback(plan.numel))
    assert torch.equal(x, before)


def test_none_leaves_no_residual():
    plan = layout()
    feedback = ErrorFeedback(plan.numel)
    send(updates(1, plan.numel, 5)[0], plan, "none", feedback)
    assert feedback.norm() == 0.0


def test_a_diverged_update_does_not_poison_the_residual():
    plan = layout()
    feedback = ErrorFeedback(plan.numel)
    x = updates(1, plan.numel, 6)[0]
    send(x, plan, "int8", feedback)
    kept = feedback.residual.clone()
    x[17] = float("nan")
    encode_update(x, plan.blocks, make_codec(Compression(kind="int8")), feedback)
    assert torch.equal(feedback.residual, kept)


def test_zero_and_norm():
    feedback = ErrorFeedback(4)
    feedback.compensate(torch.tensor([3.0, 4.0]), offset=1)
    assert feedback.norm() == pytest.approx(5.0)
    feedback.zero()
    assert feedback.norm() == 0.0
