"""Next-token loss of packed batches, computed only where something is learned.

Hidden states at positions without a label never reach the head, and the head works on a chunk of positions at
a time, computing its gradient as it goes, so that no [positions, vocabulary] tensor outlives its chunk (the
idea of Liger's fused linear cross entropy, arXiv:2410.10989).

Shapes: B rows, L positions, N positions with a label, D hidden, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

IGNORED = -100
CHUNK_POSITIONS = 1024


@dataclass(frozen=True, slots=True)
class Batch:
    """int64 [B, L] each; attention is plain causal, or kept inside windows in one of two ways.

    `mask` is bool [B, 1, L, L] (True: may attend); `lengths` are those of all windows and paddings, row after row.
    """

    tokens: Tensor
    positions: Tensor
    labels: Tensor
    mask: Tensor | None
    lengths: tuple[int, ...]
    real_tokens: int


def segment_mask(segments: Tensor) -> Tensor | None:
    """Causal within each segment: bool [B, 1, L, L]; None where no row holds more than one segment.

    Padding (segment 0) lies at the end, so without packing plain causal attention already keeps it out.
    """
    if int(segments.max()) <= 1:
        return None
    length = segments.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=segments.device).tril()
    return ((segments[:, :, None] == segments[:, None, :]) & causal)[:, None]


def hidden_states(network: Any, batch: Batch) -> Tensor:
    """The last hidden states, [B, L, D]."""
    output: Tensor = plain(network).base_model(**_inputs(batch)).last_hidden_state
    return output


def _inputs(batch: Batch) -> dict[str, Any]:
    inputs = {"input_ids": batch.tokens, "position_ids": batch.positions, "use_cache": False}
    if not batch.lengths:
        return inputs | {"attention_mask": batch.mask}
    # Four dimensions are taken as they are; without a mask, transformers would build its own from the positions.
    whole = batch.tokens.new_ones(1, 1, 1, 1, dtype=torch.bool)
    return inputs | {"attention_mask": whole, "segment_lengths": batch.lengths}


def plain(network: Any) -> Any:
    """The transformers model inside a PEFT model (adapters stay injected), or the model itself."""
    return network.get_base_model() if hasattr(network, "peft_config") else network


def token_losses(network: Any, batch: Batch) -> tuple[Tensor, int, Tensor]:
    """(sum of the token losses in fp32, how many, how many were predicted right)."""
    if changes_logits(plain(network).config):
        return _whole_logits(network, batch)
    labels = batch.labels.flatten()
    where = (labels != IGNORED).nonzero().squeeze(1)
    hidden_ND = hidden_states(network, batch).flatten(0, 1).index_select(0, where)
    head = plain(network).get_output_embeddings()
    total, correct = head_loss(head, hidden_ND, labels.index_select(0, where))
    return total, int(where.numel()), correct


def changes_logits(config: Any) -> bool:
    """Whether the family does more to logits than multiply by the head (Gemma, Cohere, Granite)."""
    names = ("final_logit_softcapping", "logit_scale", "logits_scaling")
    return any(getattr(config, name, None) not in (None, 1, 1.0) for name in names)


def _whole_logits(network: Any, batch: Batch) -> tuple[Tensor, int, Tensor]:
    """The ordinary way, for families with logits of their own making."""
    logits = plain(network)(**_inputs(batch)).logits.flatten(0, 1).float()
    labels = batch.labels.flatten()
    correct = (logits.argmax(-1) == labels).sum()
    total = functional.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum")
    return total, int((labels != IGNORED).sum()), correct


def head_loss(head: nn.Module, hidden_ND: Tensor, labels_N: Tensor) -> tuple[Tensor, Tensor]:
    """(sum of cross entropies, number right). A head with a bias or an adapter goes the ordinary way."""
    if type(head) is nn.Linear and head.bias is None:
        total, correct = _FusedHead.apply(hidden_ND, head.weight, labels_N)
        return total, correct
    logits = head(hidden_ND).float()
    return functional.cross_entropy(logits, labels_N, reduction="sum"), (logits.argmax(-1) == labels_N).sum()


class _FusedHead(torch.autograd.Function):
    """Forward computes the gradients too; backward scales them."""

    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, labels_N: Tensor) -> tuple[Tensor, Tensor]:
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        total = hidden_ND.new_zeros((), dtype=torch.float32)
        correct = torch.zeros((), dtype=torch.int64, device=hidden_ND.device)
        grad_ND = torch.empty_like(hidden_ND) if wants_hidden else None
        grad_VD = torch.zeros_like(weight_VD, dtype=torch.float32) if wants_weight else None
        for at in range(0, len(labels_N), CHUNK_POSITIONS):
            piece, labels = hidden_ND[at : at + CHUNK_POSITIONS], labels_N[at : at + CHUNK_POSITIONS]
            logits = (piece @ weight_VD.T).float()
            correct += (logits.argmax(-1) == labels).sum()
            chosen = logits.gather(1, labels[:, None]).squeeze(1)
            norm = logits.logsumexp(-1)
            total += (norm - chosen).sum()
            if not (wants_hidden or wants_weight):
                continue
            slope = _slope(logits, norm, labels).to(weight_VD.dtype)
            if grad_ND is not None:
                torch.mm(slope, weight_VD, out=grad_ND[at : at + CHUNK_POSITIONS])
            if grad_VD is not None:
                grad_VD += slope.T @ piece
        ctx.save_for_backward(grad_ND, None if grad_VD is None else grad_VD.to(weight_VD.dtype))
        ctx.mark_non_differentiable(correct)
        return total, correct

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        grad_ND, grad_VD = ctx.saved_tensors
        scale = grads[0]
        return _scaled(grad_ND, scale), _scaled(grad_VD, scale), None


def _slope(logits_NV: Tensor, norm_N: Tensor, labels_N: Tensor) -> Tensor:
    """Predicted minus wanted probabilities; overwrites the logits."""
    slope_NV = logits_NV.sub_(norm_N[:, None]).exp_()
    slope_NV[torch.arange(len(labels_N), device=labels_N.device), labels_N] -= 1
    return slope_NV


def _scaled(grad: Tensor | None, scale: Tensor) -> Tensor | None:
    return None if grad is None else grad * scale.to(grad.dtype)
