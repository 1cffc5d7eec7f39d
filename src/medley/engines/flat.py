"""A network's trainable parameters as one vector: each tensor becomes a view into it, and so does each
gradient.

So a new base version is one copy, a gradient is read without gathering, and an optimiser makes one pass. The
order is that of `named_parameters()`, which is also the order of the `Layout` (shared tensors once).
"""

from __future__ import annotations

import torch
from torch import nn

from medley.models.dtype import cast_parameters
from medley.models.lora import placement_key
from medley.protocol.errors import UserError
from medley.protocol.layout import Layout, TensorSpec, make_layout


class FlatParameters:
    """`values` and `slopes` are [numel] in the compute dtype; writing to `values` changes the network."""

    def __init__(self, network: nn.Module, dtype: torch.dtype, device: torch.device) -> None:
        self._trained = [(name, p) for name, p in network.named_parameters() if p.requires_grad]
        if not self._trained:
            raise UserError("the model has no parameter that requires a gradient, so there is nothing to train")
        self.initial = torch.cat([p.detach().flatten().float().cpu() for _, p in self._trained])
        cast_parameters(network, dtype).to(device)
        self.values = torch.empty(self.initial.numel(), dtype=dtype, device=device)
        self.slopes = torch.zeros_like(self.values)
        self._bind()
        self.values.copy_(self.initial)

    def _bind(self) -> None:
        offset = 0
        for _, p in self._trained:
            stop = offset + p.numel()
            shape = p.shape
            p.data = self.values[offset:stop].view(shape)
            p.grad = self.slopes[offset:stop].view(shape)
            offset = stop

    def zero_slopes(self) -> None:
        """Forget gradients without unbinding them."""
        self.slopes.zero_()

    def layout(self, block_elements: int) -> Layout:
        """How this vector is cut for the shards."""
        specs = (TensorSpec(name, tuple(p.shape), placement_key(name)) for name, p in self._trained)
        return make_layout(specs, block_elements)
