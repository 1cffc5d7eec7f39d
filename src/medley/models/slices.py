"""Some layers of a model, from transformers' own modules: built without storage, filled tensor by tensor.

Promises: only the tensors of the slice are read, one at a time, so that loading costs about the slice's own bytes; no
code of the checkpoint is run. Families: Llama, Mistral, Qwen2, Qwen3, OPT; whatever else their configurations say
(grouped heads, tied embeddings, biases, rope scaling, windows) is transformers' business, for the modules are its.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

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

Transform = Callable[[nn.Module], nn.Module]  # of one part, once it is filled: quantisation, moving to a device


@dataclass(frozen=True, slots=True)
class Span:
    """Layers [first, end) of a model that has `layers`: with the embedding where it begins, the head where it ends."""

    first: int
    end: int
    layers: int

    def __post_init__(self) -> None:
        if not 0 <= self.first < self.end <= self.layers:
            raise UserError(f"layers {self.first} to {self.end} are no slice of a model of {self.layers} layers")

    @property
    def embeds(self) -> bool:
        return self.first == 0

    @property
    def heads(self) -> bool:
        return self.end == self.layers


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


class SlicedModel(nn.Module):
    """A span's modules. Not called as a whole: `embed`, then the layers (by whoever holds the cache), then `logits`."""

    def __init__(self, network: Any, span: Span) -> None:
        super().__init__()
        base, norm = FAMILIES[network.config.model_type]
        decoder = network.get_submodule(base)
        self.config, self.span = network.config, span
        self.layers = nn.ModuleList(decoder.layers[span.first : span.end])
        self.rotary_emb = getattr(decoder, "rotary_emb", None)
        self.embed_tokens = decoder.embed_tokens if span.embeds else None
        self.embed_positions = getattr(decoder, "embed_positions", None) if span.embeds else None
        self.project_in = getattr(decoder, "project_in", None) if span.embeds else None
        self.norm = getattr(decoder, norm) if span.heads else None
        self.project_out = getattr(decoder, "project_out", None) if span.heads else None
        self.lm_head = network.lm_head if span.heads else None

    def embed(self, tokens_1T: Tensor, positions_1T: Tensor) -> Tensor:
        """Hidden states [1, T, width] of tokens at absolute positions; where the span begins the model."""
        assert self.embed_tokens is not None
        hidden: Tensor = self.embed_tokens(tokens_1T)
        if self.project_in is not None:
            hidden = self.project_in(hidden)
        if self.embed_positions is not None:
            hidden = hidden + self.embed_positions(None, 0, position_ids=positions_1T)
        return hidden

    def rotation(self, hidden: Tensor, positions_1T: Tensor) -> tuple[Tensor, Tensor] | None:
        """Cosines and sines for these positions, for families that rotate."""
        if self.rotary_emb is None:
            return None
        turned: tuple[Tensor, Tensor] = self.rotary_emb(hidden, position_ids=positions_1T)
        return turned

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., vocabulary] from the last layer's output; where the span ends the model."""
        assert self.lm_head is not None
        if self.norm is not None:
            hidden = self.norm(hidden)
        if self.project_out is not None:
            hidden = self.project_out(hidden)
        out: Tensor = self.lm_head(hidden)
        return out


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


def load_slice(
    weights: Tensors,
    config: Any,
    span: Span,
    dtype: torch.dtype,
    attention: str = "sdpa",
    transform: Transform | None = None,
) -> SlicedModel:
    """The span, filled from the checkpoint, in evaluation mode; parameters in `dtype`.

    `transform` gets each part (a layer, the head) as soon as it is filled: the whole slice never exists untransformed.
    Raises UserError for tensors that are missing or of another shape than the configuration says.
    """
    sliced = _skeleton(config, span, dtype, attention)
    for holder, name, prefix in _parts(sliced):
        part = holder.get_submodule(name)
        if name == "lm_head" and config.tie_word_embeddings:
            _fill_tied(sliced, weights, dtype)
        else:
            _fill(part, prefix, weights, dtype)
        if transform is not None:
            setattr(holder, name, transform(part))
    return sliced.eval()


def random_slice(
    config: Any, span: Span, dtype: torch.dtype, seed: int, attention: str = "sdpa", transform: Transform | None = None
) -> SlicedModel:
    """The same with small random weights: for measuring a machine before anything is fetched."""
    sliced = _skeleton(config, span, dtype, attention)
    source = torch.Generator().manual_seed(seed)
    for holder, name, _ in _parts(sliced):
        part = holder.get_submodule(name)
        for owner, key, parameter in _parameters(part):
            if parameter.is_meta:
                owner._parameters[key] = nn.Parameter(_drawn(parameter.shape, dtype, source), requires_grad=False)
        if transform is not None:
            setattr(holder, name, transform(part))
    return sliced.eval()


def _drawn(shape: torch.Size, dtype: torch.dtype, source: torch.Generator) -> Tensor:
    """Normal numbers that repeat after a while, because drawing a billion takes longer than measuring with them."""
    some = torch.empty(min(shape.numel(), 1_000_003), dtype=torch.float32).normal_(0, 0.02, generator=source).to(dtype)
    return some.repeat(-(-shape.numel() // some.numel()))[: shape.numel()].clone().reshape(shape)


def sizes(config: Any, dtype: torch.dtype, linear_nbytes: Callable[[nn.Linear], int] | None = None) -> Sizes:
    """Without reading any weight. `linear_nbytes`: of a linear layer where it is quantised."""
    network = _network(config, "sdpa")
    whole = SlicedModel(network, Span(0, config.num_hidden_layers, config.num_hidden_layers))

    def nbytes(*parts: nn.Module | None) -> int:
        modules = [m for part in parts if part is not None for m in part.modules()]
        return sum(_own_nbytes(module, dtype, linear_nbytes) for module in modules)

    attention: Any = whole.layers[0].self_attn  # type: ignore[union-attr]
    return Sizes(
        layers=config.num_hidden_layers,
        layer_nbytes=nbytes(whole.layers[0]),
        embedding_nbytes=nbytes(whole.embed_tokens, whole.embed_positions, whole.project_in),
        head_nbytes=nbytes(whole.norm, whole.project_out, whole.lm_head),
        kv_nbytes=2 * attention.k_proj.out_features * dtype.itemsize,
        wire_nbytes=config.hidden_size * dtype.itemsize,
        tied=bool(config.tie_word_embeddings) and linear_nbytes is None,
    )


def _own_nbytes(module: nn.Module, dtype: torch.dtype, linear_nbytes: Callable[[nn.Linear], int] | None) -> int:
    if linear_nbytes is not None and isinstance(module, nn.Linear):
        return linear_nbytes(module)
    return sum(p.numel() * dtype.itemsize for p in module.parameters(recurse=False))


# -- building -----------------------------------------------------------------------------------------------------


def _network(config: Any, attention: str) -> Any:
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, attn_implementation=attention)


def _skeleton(config: Any, span: Span, dtype: torch.dtype, attention: str) -> SlicedModel:
    sliced = SlicedModel(_network(config, attention), span)
    if sliced.rotary_emb is not None:
        # Its frequencies are no part of a checkpoint, and stay fp32 whatever the parameters are.
        sliced.rotary_emb = type(sliced.rotary_emb)(config=sliced.config)
    return sliced


def _parts(sliced: SlicedModel) -> Iterator[tuple[nn.Module, str, str]]:
    """(owner, name there, prefix in the checkpoint) of everything that has weights, the embedding first."""
    base, norm = FAMILIES[sliced.config.model_type]
    for name in ("embed_tokens", "embed_positions", "project_in"):
        if getattr(sliced, name) is not None:
            yield sliced, name, f"{base}.{name}"
    for place in range(len(sliced.layers)):
        yield sliced.layers, str(place), f"{base}.layers.{sliced.span.first + place}"
    for name, stored in (("norm", f"{base}.{norm}"), ("project_out", f"{base}.project_out"), ("lm_head", "lm_head")):
        if getattr(sliced, name) is not None:
            yield sliced, name, stored


def _parameters(part: nn.Module) -> list[tuple[nn.Module, str, nn.Parameter]]:
    return [(m, key, p) for m in part.modules() for key, p in m._parameters.items() if p is not None]


def _fill(part: nn.Module, prefix: str, weights: Tensors, dtype: torch.dtype) -> None:
    for path, module in part.named_modules():
        for key, parameter in module._parameters.items():
            if parameter is not None:
                name = ".".join(piece for piece in (prefix, path, key) if piece)
                module._parameters[key] = _read(weights, name, parameter.shape, dtype)


def _fill_tied(sliced: SlicedModel, weights: Tensors, dtype: torch.dtype) -> None:
    """The head is the embedding: the same storage where both are here, else the matrix read once more."""
    head: Any = sliced.lm_head
    if sliced.embed_tokens is not None:
        head.weight = sliced.embed_tokens.weight
        return
    base, _ = FAMILIES[sliced.config.model_type]
    head._parameters["weight"] = _read(weights, f"{base}.embed_tokens.weight", head.weight.shape, dtype)


def _read(weights: Tensors, name: str, shape: torch.Size, dtype: torch.dtype) -> nn.Parameter:
    # Checkpoints of a bare decoder (OPT's of old, some fine-tunes) lack the outermost "model.".
    stored = weights.find(name, name.removeprefix("model."))
    if stored.shape != tuple(shape):
        raise UserError(f"tensor '{name}' has the shape {list(stored.shape)}, the configuration wants {list(shape)}")
    if not stored.dtype.is_floating_point:
        raise UserError(f"tensor '{name}' is of {stored.dtype}; weights quantised by others are not loaded yet")
    return nn.Parameter(weights.read(stored, dtype), requires_grad=False)
