"""A decoder layer as serving computes it: transformers' layer with one product where several have the same input.

Between the products of one token lies work that takes longer to ask for than to do, so there is as little of it as
possible: queries, keys and values come from one product and are rotated together, gate and up from another, and where
our own kernels are, few tokens pass the whole layer in one call. Numbers are those of transformers' layer: the same
sums, rounded in bf16 at most as often. Families whose layers are built like Llama's; any other stays as it is.

Between products the caches hold nothing but weights that were just read, so that each further operation costs four
times what it costs in a loop.

Shapes: T tokens, W width, H heads, G heads of keys and of values, A those that are rotated (H + G), N all (H + 2 G),
D width of a head, V of the heads together, I inner width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from medley.models.kernels.layer import TOKENS, Place, Shape, WholeLayer, can_be_whole
from medley.models.streamed_linear import StreamedLinear

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
TINY = 1e-38  # in place of zero, to divide by


class LeanLayer(nn.Module):
    """Takes the weights of `layer`, which holds none afterwards. `attention`: as transformers registers them."""

    def __init__(self, layer: Any, config: Any, attention: Callable[..., Any]) -> None:
        super().__init__()
        own, inner = layer.self_attn, layer.mlp
        self.layer_idx, self.scaling = own.layer_idx, own.scaling
        self.window = config.sliding_window if config.model_type == "mistral" else getattr(own, "sliding_window", None)
        self._attention = attention
        self._width = own.head_dim
        self._heads = own.q_proj.out_features // self._width
        self._turned = self._heads + own.k_proj.out_features // self._width
        self._eps = layer.input_layernorm.variance_epsilon
        self.before_W, self.between_W = layer.input_layernorm.weight, layer.post_attention_layernorm.weight
        self.heads_AD = self._weights_of_heads(own) if hasattr(own, "q_norm") else None
        self.attend = joined(own.q_proj, own.k_proj, own.v_proj)
        self.attended = own.o_proj
        self.widen = joined(inner.gate_proj, inner.up_proj)
        self.activation, self.narrow = inner.act_fn, inner.down_proj
        self._inner, self._silu = inner.down_proj.in_features, config.hidden_act == "silu"

    def _weights_of_heads(self, own: Any) -> nn.Parameter:
        """For the norm of queries and keys at once: each head has the weights of its kind."""
        query_HD = own.q_norm.weight.data.expand(self._heads, -1)
        key_GD = own.k_norm.weight.data.expand(self._turned - self._heads, -1)
        return nn.Parameter(torch.cat([query_HD, key_GD]), requires_grad=False)

    def forward(
        self,
        hidden_1TW: Tensor,
        turning: tuple[Tensor, Tensor],
        places: Callable[[int], Sequence[Place]] | None = None,
        **attending: Any,
    ) -> Tensor:
        """[1, T, W]. `turning`: as `turning_of` has it; `places`: of each token in the cache of a layer, where that is
        of contiguous buffers on the CPU; `attending`: more for the attention function.
        """
        whole = self._whole if places is not None and hidden_1TW.shape[1] <= TOKENS else None
        if whole is not None and places is not None:
            return whole(hidden_1TW[0], *turning, places(self.layer_idx))[None]
        attended_1TV = self._attended(normed(hidden_1TW, self.before_W, self._eps), turning, attending)
        hidden_1TW = hidden_1TW + self.attended(attended_1TV)
        gate_1TI, up_1TI = self.widen(normed(hidden_1TW, self.between_W, self._eps)).chunk(2, -1)
        narrowed_1TW: Tensor = self.narrow(self.activation(gate_1TI).mul_(up_1TI))
        return hidden_1TW + narrowed_1TW

    @cached_property
    def _whole(self) -> WholeLayer | None:
        """None where the weights or the shape are not those of the kernels. They stay where they are from now on."""
        linears = [self.attend, self.attended, self.widen, self.narrow]
        streamed = [linear.described for linear in linears if isinstance(linear, StreamedLinear)]
        if len(streamed) < len(linears) or not self._silu or not can_be_whole(self._shape()):
            return None
        return WholeLayer(self._shape(), streamed, self.before_W, self.between_W, self.heads_AD)

    def _shape(self) -> Shape:
        groups = self._turned - self._heads
        sizes = len(self.before_W), self._inner, self._heads, groups, self._width
        return Shape(*sizes, self.window or 0, self._eps, self.scaling)

    def _attended(self, normed_1TW: Tensor, turning: tuple[Tensor, Tensor], attending: dict[str, Any]) -> Tensor:
        """[1, T, V]: the values that the heads found."""
        tokens = normed_1TW.shape[1]
        all_TND = self.attend(normed_1TW).view(tokens, -1, self._width)
        turned_TAD = all_TND[:, : self._turned]
        if self.heads_AD is not None:
            turned_TAD = normed(turned_TAD, self.heads_AD, self._eps)
        turned_1ATD = turn(turned_TAD, turning).transpose(0, 1)[None]
        value_1GTD = all_TND[:, self._turned :].transpose(0, 1)[None]
        query_1HTD, key_1GTD = turned_1ATD[:, : self._heads], turned_1ATD[:, self._heads :]
        given = query_1HTD, key_1GTD, value_1GTD, None
        found_1THD: Tensor
        found_1THD, _ = self._attention(self, *given, scaling=self.scaling, sliding_window=self.window, **attending)
        return found_1THD.reshape(1, tokens, -1)


def normed(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """transformers' RMS norm: over the last dimension, in fp32."""
    if x.numel() == x.shape[-1] and x.is_cpu:  # one token: the same numbers from a third of the kernels
        length = float(torch.linalg.vector_norm(x, dtype=torch.float32))
        return (x * max(length * length / x.shape[-1] + eps, TINY) ** -0.5).mul_(weight)
    return functional.rms_norm(x, x.shape[-1:], None, eps).mul_(weight)


def turning_of(rotary: nn.Module, hidden_1TW: Tensor, positions_1T: Tensor) -> tuple[Tensor, Tensor]:
    """For all layers of a pass: cosines [T, 1, D], and sines [T, 1, 2, D / 2] with the sign that each half takes."""
    cos_1TD, sin_1TD = rotary(hidden_1TW, position_ids=positions_1T)
    sin_T12d = sin_1TD[0].view(len(sin_1TD[0]), 1, 2, -1)
    return cos_1TD[0][:, None], sin_T12d * sin_T12d.new_tensor([[-1.0], [1.0]])


def turn(heads_TAD: Tensor, turning: tuple[Tensor, Tensor]) -> Tensor:
    """Rotated by their positions: x cos + (-x2, x1) sin with x1 and x2 the halves of x, as transformers does."""
    cos_T1D, sin_T12d = turning
    turned_TAD = heads_TAD * cos_T1D
    halves_TA2d = heads_TAD.unflatten(-1, (2, -1)).flip(-2)
    turned_TAD.view(halves_TA2d.shape).addcmul_(halves_TA2d, sin_T12d)
    return turned_TAD


def joined(*linears: nn.Linear) -> nn.Linear:
    """One layer with the rows of these, one after another; it takes their weights from them."""
    rows = [linear.out_features for linear in linears]
    made = nn.Linear(linears[0].in_features, sum(rows), linears[0].bias is not None, device="meta")
    for name in ("weight", "bias") if linears[0].bias is not None else ("weight",):
        whole = torch.cat([getattr(linear, name).data for linear in linears])
        setattr(made, name, nn.Parameter(whole, requires_grad=False))
        for linear in linears:
            setattr(linear, name, None)
    return made
