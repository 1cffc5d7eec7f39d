"""Low-rank adapters by PEFT: Hu et al., "LoRA", arXiv:2106.09685; rank-stabilised scaling, arXiv:2312.03732.

Promises: only adapter tensors are trained; the two factors of one adapter share a placement key, so that one
shard holds both; what `save_adapter` writes loads with plain `PeftModel.from_pretrained`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import nn

from medley.protocol.errors import UserError
from medley.protocol.spec import Lora

BASE = "base"
MARKS = (".lora_A.", ".lora_B.", ".lora_embedding_A.", ".lora_embedding_B.")


def add_lora(network: Any, lora: Lora) -> Any:
    """Freeze `network` and inject adapters. Raises `UserError` for targets that it does not have."""
    from peft import LoraConfig, TaskType, get_peft_model

    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=list(lora.targets) or linear_names(network),
        use_rslora=lora.rslora,
    )
    try:
        return get_peft_model(network, config, autocast_adapter_dtype=False)
    except ValueError as error:
        names = ", ".join(linear_names(network))
        raise UserError(f"model.lora.targets {list(lora.targets)} are not in the model; allowed: {names}") from error


def linear_names(network: nn.Module) -> list[str]:
    """Last name parts of every linear layer inside the blocks; the head is none of them."""
    names = {name.rsplit(".", 1)[-1] for name, m in network.named_modules() if isinstance(m, nn.Linear) and "." in name}
    return sorted(names - {"lm_head"})


def placement_key(parameter: str) -> str:
    """The adapter a tensor belongs to; empty for a tensor that is no adapter's."""
    for mark in MARKS:
        if mark in parameter:
            return parameter.split(mark)[0]
    return ""


def is_adapted(network: nn.Module) -> bool:
    return hasattr(network, "peft_config")


def save_adapter(network: Any, directory: Path) -> None:
    """`adapter_config.json` and `adapter_model.safetensors`.

    A base that was drawn at random lies nowhere else, so it goes into `base/` inside, and the configuration names it
    as a relative path; one that was loaded is named as it was.
    """
    network.save_pretrained(str(directory), safe_serialization=True)
    base = network.get_base_model()
    if base.name_or_path:
        return
    base.save_pretrained(str(directory / BASE), state_dict=_without_adapters(base), safe_serialization=True)
    # Written afterwards: PEFT would look for a name that it saves, on the hub too.
    path = directory / "adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | {"base_model_name_or_path": BASE}
    path.write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")


def _without_adapters(base: nn.Module) -> dict[str, Any]:
    """The parameters as they are called in a network that nothing was injected into."""
    kept = {name: t for name, t in base.state_dict().items() if not any(mark in name for mark in MARKS)}
    return {name.replace(".base_layer.", "."): tensor for name, tensor in kept.items()}
