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
    """int64 [B, L] each;

    `mask` is bool [B, 1, L, L] (True: may attend) or None for plain causal attention.
    """

    tokens: Tensor
    positions: Tensor
    labels: Tensor
    mask: Tensor | None
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
    decoder = plain(network).base_model
    output: Tensor = decoder(
        input_ids=batch.tokens, position_ids=batch.positions, attention_mask=batch.mask, use_cache=False
    ).last_hidden_state
    return output


def plain(network: Any) -> Any:
    """The transformers model inside a PEFT model (adapters stay injected), or the model itself."""
    return network.get_base_model() if hasattr(network, "peft_config") else network


def token_losses(network: Any, batch: Batch) -> tuple[Tensor, int, Tensor]:
    """(sum of the token losses in fp32, how many, how many were predicted right)."""
    labels = batch.labels.flatten()
    where = (labels != IGNORED).nonzero().squeeze(1)
    hidden_ND = hidden_states(network, batch).flatten(0, 1).index_select(0, where)
    total, correct = head_loss(plain(network).get_output_embeddings(), hidden_ND, labels.index_select(0, where))
    return total, int(where.numel()), correct


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
            slope = logits.sub_(norm[:, None]).exp_()
            slope[torch.arange(len(labels), device=labels.device), labels] -= 1
            slope = slope.to(weight_VD.dtype)
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


def _scaled(grad: Tensor | None, scale: Tensor) -> Tensor | None:
    return None if grad is None else grad * scale.to(grad.dtype)
