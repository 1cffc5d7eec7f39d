"""Attention inside the windows of a packed batch, without computing what a mask would throw away.

A packed row of L tokens in windows of l tokens needs sum(l^2) products, not L^2. The batch is seen as one long row
that is split at the window borders; each piece is ordinary causal attention. transformers calls `segment_attention`
under the name `ATTENTION`; where a call brings no `segment_lengths` (generation, accelerators) it is sdpa.

Shapes: B rows, H heads, L positions, D width of a head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

ATTENTION = "medley_segments"


def segment_attention(
    module: nn.Module,
    query_BHLD: Tensor,
    key_BHLD: Tensor,
    value_BHLD: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    segment_lengths: tuple[int, ...] = (),
    **more: Any,
) -> tuple[Tensor, None]:
    """Output [B, L, H, D]. `segment_lengths`: of all windows and paddings, row after row; they sum to B x L."""
    if not segment_lengths:
        output: tuple[Tensor, None] = sdpa_attention_forward(
            module, query_BHLD, key_BHLD, value_BHLD, attention_mask, dropout, scaling, **more
        )
        return output
    groups = getattr(module, "num_key_value_groups", 1)
    query, key, value = (
        _pieces(t, segment_lengths) for t in (query_BHLD, repeat_kv(key_BHLD, groups), repeat_kv(value_BHLD, groups))
    )
    done = [
        functional.scaled_dot_product_attention(q, k, v, dropout_p=dropout, scale=scaling, is_causal=True)
        for q, k, v in zip(query, key, value, strict=True)
    ]
    rows, heads, length, width = query_BHLD.shape
    return torch.cat(done, dim=2).transpose(1, 2).reshape(rows, length, heads, width), None


def _pieces(tensor_BHLD: Tensor, lengths: tuple[int, ...]) -> tuple[Tensor, ...]:
    """One [1, H, l, D] for each segment; splitting once keeps the backward pass to one concatenation."""
    rows, heads, length, width = tensor_BHLD.shape
    joined = tensor_BHLD.transpose(0, 1).reshape(1, heads, rows * length, width)
    return joined.split(lengths, dim=2)


AttentionInterface.register(ATTENTION, segment_attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
