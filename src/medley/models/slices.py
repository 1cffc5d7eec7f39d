"""A model's parts one by one (embedding, layers, head), from transformers' own modules: built without storage, filled
tensor by tensor.

Promises: only the tensors of the part are read, one at a time, so that loading costs about the part's own bytes; no
code of the checkpoint is run; a part is whole or does not exist. Families: Llama, Mistral, Qwen2, Qwen3, OPT; whatever
else their configurations say (grouped heads, tied embeddings, biases, rope scaling, windows) is transformers' business,
for the modules are its, until a filled one is made lean for computing.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from medley.models.lean_layer import FAMILIES as LEAN
from medley.models.lean_layer import LeanLayer
from medley.models.packed_linear import can_pack, matrix_of, pack, streams
from medley.models.presets import Preset
from medley.models.weightfiles import Tensors
from medley.protocol.errors import UserError, first_line

# Where the decoder lies inside the causal model, and what its last norm is called.
FAMILIES = {
    "llama": ("model", "norm"),
    "mistral": ("model", "norm"),
    "qwen2": ("model", "norm"),
    "qwen3": ("model", "norm"),
    "opt": ("model.decoder", "final_layer_norm"),
}

VOCABULARY = 32_000  # of a preset that takes its tokenizer's

Transform = Callable[[nn.Module], nn.Module]  # of one part, once it is filled: quantisation
PartT = TypeVar("PartT", bound=nn.Module)


@dataclass(frozen=True, slots=True)
class Sizes:
    """Bytes of a model's parts; what a planner needs to know of it."""

    layers: int
    layer_nbytes: int
    embedding_nbytes: int
    head_nbytes: int
    kv_nbytes: int  # of one token in one layer
    wire_nbytes: int  # of one token between two stages
    tied: bool


class Embedding(nn.Module):
    """What begins a model: tokens at absolute positions to hidden states."""

    def __init__(self, decoder: Any) -> None:
        super().__init__()
        self.embed_tokens = deepcopy(decoder.embed_tokens)
        self.embed_positions = deepcopy(getattr(decoder, "embed_positions", None))
        self.project_in = deepcopy(getattr(decoder, "project_in", None))

    def forward(self, tokens_1T: Tensor, positions_1T: Tensor) -> Tensor:
        """[1, T, width]."""
        hidden: Tensor = self.embed_tokens(tokens_1T)
        if self.project_in is not None:
            hidden = self.project_in(hidden)
        if self.embed_positions is not None:
            hidden = hidden + self.embed_positions(None, 0, position_ids=positions_1T)
        return hidden


class Head(nn.Module):
    """What ends a model: the last layer's output to logits."""

    def __init__(self, decoder: Any, norm: str, lm_head: nn.Module) -> None:
        super().__init__()
        self.norm = deepcopy(getattr(decoder, norm))
        self.project_out = deepcopy(getattr(decoder, "project_out", None))
        self.lm_head = deepcopy(lm_head)

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., vocabulary]."""
        if self.norm is not None:
            hidden = self.norm(hidden)
        if self.project_out is not None:
            hidden = self.project_out(hidden)
        out: Tensor = self.lm_head(hidden)
        return out


class Parts:
    """Builds and fills parts of one model, in evaluation mode, with parameters in `dtype`.

    Made once: what all layers have in common is then known. `transform` gets a layer, and the head's linear layers, as
    soon as they are filled, so that two parts never exist untransformed. `device`: where they will compute, if they are
    only for that: layers are then a `LeanLayer` where there is one for the family, and without a transform weights are
    kept as its kernels like them best. The methods may be called on any thread, and raise UserError for tensors that
    are missing or of another shape than the configuration says.
    """

    def __init__(
        self,
        config: Any,
        dtype: torch.dtype,
        attention: str = "sdpa",
        transform: Transform | None = None,
        device: torch.device | None = None,
    ) -> None:
        self.dtype, self.device = dtype, device
        packs = transform is None and device is not None and can_pack(dtype, device)
        self._keeps_matrices = transform is None
        self.transform = pack if packs else transform
        self.layers = int(config.num_hidden_layers)
        self.base, self._norm = FAMILIES[config.model_type]
        self._network = _network(config, attention)
        self._attention = attention
        self.config = self._network.config
        self._decoder = self._network.get_submodule(self.base)

    def layer(self, weights: Tensors, index: int) -> nn.Module:
        made: nn.Module = _fill(self.bare_layer(index), f"{self.base}.layers.{index}", weights, self.dtype)
        if self.device is not None and self.config.model_type in LEAN:
            from transformers import AttentionInterface

            made = LeanLayer(made, self.config, AttentionInterface()[self._attention])
        return self._placed(made if self.transform is None else self.transform(made))

    def embedding(self, weights: Tensors, head: Head | None = None) -> Embedding:
        """Shares the matrix of `head` where the model ties them and that one is still a matrix."""
        made = self.bare_embedding()
        matrix = matrix_of(head.lm_head) if head is not None and self.tied else None
        if matrix is not None:
            made.embed_tokens.weight = matrix
        _fill(made, self.base, weights, self.dtype)
        return self._placed(made)

    def head(self, weights: Tensors, embedding: Embedding | None = None) -> Head:
        """Where the model ties them: the matrix of `embedding`, or the same read once more."""
        made = self.bare_head()
        shares = self.tied and embedding is not None
        if shares and embedding is not None:
            made.lm_head.weight = embedding.embed_tokens.weight
        names = {
            "norm": f"{self.base}.{self._norm}",
            "project_out": f"{self.base}.project_out",
            "lm_head": f"{self.base}.embed_tokens" if self.tied else "lm_head",
        }
        for name, part in made.named_children():
            _fill(part, names[name], weights, self.dtype)
            if self.transform is not None and not (shares and self._keeps_matrix(part) and name == "lm_head"):
                setattr(made, name, self.transform(part))
        return self._placed(made)

    def _keeps_matrix(self, part: nn.Module) -> bool:
        """Where making it ready to compute would take a second matrix."""
        return self._keeps_matrices and not (isinstance(part, nn.Linear) and streams(part))

    def _placed(self, part: PartT) -> PartT:
        return part if self.device is None else part.to(self.device)

    def rotary(self) -> nn.Module | None:
        """Cosines and sines by position, for families that rotate. Its frequencies are no part of a checkpoint, and
        stay fp32 whatever the parameters are.
        """
        bare = getattr(self._decoder, "rotary_emb", None)
        made: nn.Module | None = None if bare is None else type(bare)(config=self.config)
        return None if made is None else self._placed(made)

    @property
    def tied(self) -> bool:
        return bool(self.config.tie_word_embeddings)

    # -- without storage ------------------------------------------------------------------------------------------

    def bare_layer(self, index: int) -> nn.Module:
        with torch.device("meta"):
            made: nn.Module = type(self._decoder.layers[0])(self.config, index)
        return made.eval()

    def bare_embedding(self) -> Embedding:
        return Embedding(self._decoder).eval()

    def bare_head(self) -> Head:
        return Head(self._decoder, self._norm, self._network.lm_head).eval()

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of every tensor that a whole checkpoint has, by its name there."""
        ends = {f"{self.base}.{name}": p for name, p in self.bare_embedding().named_parameters()}
        for name, p in self.bare_head().named_parameters():
            stored = name if name.startswith("lm_head") else f"{self.base}.{name.replace('norm.', f'{self._norm}.')}"
            ends[stored] = p
        if self.tied:
            del ends["lm_head.weight"]
        layer = dict(self.bare_layer(0).named_parameters())
        layers = {f"{self.base}.layers.{i}.{name}": p for i in range(self.layers) for name, p in layer.items()}
        return {name: tuple(p.shape) for name, p in (ends | layers).items()}


def config_of_directory(directory: Path) -> Any:
    """The transformers configuration of a family that can be sliced. Raises UserError."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(str(directory), trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UserError(
            f"the model '{directory}' has no configuration that can be read ({first_line(error)})"
        ) from error
    if config.model_type not in FAMILIES:
        raise UserError(
            f"'{directory}' is of the family '{config.model_type}', which cannot be split into stages; "
            f"these can: {', '.join(sorted(FAMILIES))}"
        )
    return config


def config_of_preset(shape: Preset) -> Any:
    """The transformers configuration of a preset, for planning and measuring; nothing is initialised."""
    from transformers import LlamaConfig, OPTConfig

    common = {
        "vocab_size": shape.vocab_size or VOCABULARY,
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "max_position_embeddings": shape.context_tokens,
        "tie_word_embeddings": shape.tied,
    }
    if shape.family == "llama":
        return LlamaConfig(**common, num_key_value_heads=shape.kv_heads, intermediate_size=shape.intermediate)
    return OPTConfig(**common, ffn_dim=shape.intermediate, word_embed_proj_dim=shape.hidden)


def sizes(config: Any, dtype: torch.dtype, linear_nbytes: Callable[[nn.Linear], int] | None = None) -> Sizes:
    """Without reading any weight. `linear_nbytes`: of a linear layer where it is quantised."""
    parts = Parts(config, dtype)

    def nbytes(part: nn.Module, linear: Callable[[nn.Linear], int] | None) -> int:
        return sum(_own_nbytes(module, dtype, linear) for module in part.modules())

    layer: Any = parts.bare_layer(0)
    return Sizes(
        layers=parts.layers,
        layer_nbytes=nbytes(layer, linear_nbytes),
        embedding_nbytes=nbytes(parts.bare_embedding(), None),
        head_nbytes=nbytes(parts.bare_head(), linear_nbytes),
        kv_nbytes=2 * layer.self_attn.k_proj.out_features * dtype.itemsize,
        wire_nbytes=config.hidden_size * dtype.itemsize,
        tied=parts.tied and linear_nbytes is None,
    )


def _own_nbytes(module: nn.Module, dtype: torch.dtype, linear_nbytes: Callable[[nn.Linear], int] | None) -> int:
    if linear_nbytes is not None and isinstance(module, nn.Linear):
        return linear_nbytes(module)
    return sum(p.numel() * dtype.itemsize for p in module.parameters(recurse=False))


def _network(config: Any, attention: str) -> Any:
    """The causal model with one layer, whose configuration speaks of all."""
    from transformers import AutoModelForCausalLM

    short = deepcopy(config)
    short.num_hidden_layers = 1
    with torch.device("meta"):
        network = AutoModelForCausalLM.from_config(short, attn_implementation=attention)
    network.config.num_hidden_layers = config.num_hidden_layers
    return network


def _fill(part: nn.Module, prefix: str, weights: Tensors, dtype: torch.dtype) -> nn.Module:
    """Every parameter that has no storage yet."""
    for path, module in part.named_modules():
        for key, parameter in module._parameters.items():
            if parameter is not None and parameter.is_meta:
                name = ".".join(piece for piece in (prefix, path, key) if piece)
                module._parameters[key] = _read(weights, name, parameter.shape, dtype)
    return part


def _read(weights: Tensors, name: str, shape: torch.Size, dtype: torch.dtype) -> nn.Parameter:
    # Checkpoints of a bare decoder (OPT's of old, some fine-tunes) lack the outermost "model.".
    stored = weights.find(name, name.removeprefix("model."))
    if stored.shape != tuple(shape):
        raise UserError(f"tensor '{name}' has the shape {list(stored.shape)}, the configuration wants {list(shape)}")
    if not stored.dtype.is_floating_point:
        raise UserError(f"tensor '{name}' is of {stored.dtype}; weights quantised by others are not loaded yet")
    return nn.Parameter(weights.read(stored, dtype), requires_grad=False)
