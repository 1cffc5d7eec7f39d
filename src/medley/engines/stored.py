"""A model as it lies on disk, ready to answer: a Hugging Face directory, or a PEFT adapter on the base it
names.

Promises: safetensors only, no code of the directory is run, and a model that does not fit into memory is
refused before anything is allocated.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from medley.engines.hub import hub_directory
from medley.models.dtype import choose_device, choose_dtype
from medley.models.memory import available_nbytes, readable
from medley.models.tokenizer import load_tokenizer
from medley.protocol.errors import UserError, first_line


def load_stored(directory: Path, dtype_name: str) -> tuple[Any, Any]:
    """Model and tokenizer of a directory, on the device; an adapter is merged into its base. Raises
    UserError.
    """
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    dtype, device = choose_dtype(dtype_name), choose_device()
    adapted = (directory / "adapter_config.json").exists()
    base = _base_of(directory) if adapted else str(directory)
    model = _network(base, dtype)
    if adapted:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, str(directory), use_safetensors=True).merge_and_unload()
    own_words = (directory / "tokenizer_config.json").exists()
    return model.to(device), load_tokenizer(directory if own_words else base)


def _base_of(adapter: Path) -> str:
    """The directory of the model an adapter was trained on; a relative one starts at the adapter. Raises
    UserError.
    """
    config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    base = config.get("base_model_name_or_path")
    if not base:
        raise UserError(f"'{adapter / 'adapter_config.json'}' does not name the model that the adapter belongs to")
    for directory in (adapter / base, Path(base)):
        if directory.is_dir():
            return str(directory)
    try:
        return str(hub_directory(base))
    except OSError as error:
        raise UserError(
            f"the adapter '{adapter}' belongs to '{base}', which is no directory here, and as a hub name: {error}"
        ) from error


def _network(base: str, dtype: torch.dtype) -> Any:
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(base, trust_remote_code=False)
        _check_memory(base, config, dtype)
        model, told = AutoModelForCausalLM.from_pretrained(
            base,
            config=config,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(f"the model '{base}' could not be loaded from safetensors ({first_line(error)})") from error
    if missing := sorted(told["missing_keys"]):
        # Left alone, they would be drawn at random and the model would answer nonsense.
        raise UserError(f"the weights of '{base}' are incomplete: {len(missing)} are missing, first {missing[0]}")
    return model


def _check_memory(base: str, config: Any, dtype: torch.dtype) -> None:
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        shape = AutoModelForCausalLM.from_config(config)
    needed = sum(p.numel() for p in shape.parameters()) * dtype.itemsize
    if needed > available_nbytes():
        raise UserError(
            f"the model '{base}' needs about {readable(needed)} of memory, but {readable(available_nbytes())}"
            " is free; take a smaller model or a larger machine"
        )
