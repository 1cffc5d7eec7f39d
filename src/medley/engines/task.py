"""What a person implements to train any torch model, and how it is found.

    class Digits(Task):
        def model(self): return nn.Linear(64, 10)
        def dataset(self): return list(zip(images, labels))
        def loss(self, model, batch): return functional.cross_entropy(model(batch[0]), batch[1])

Promises: `load_task` imports a person's code only where that was allowed.
Leaves to others: leases, optimisers, precision, everything distributed.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from medley.protocol.errors import UserError

Options = Mapping[str, int | float | str | bool]


@dataclass(frozen=True, slots=True)
class Loss:
    """`total` is the summed loss (differentiable), `weight` what it is divided by for a mean.

    `correct` counts right predictions out of `weight`; `tokens` counts everything read.
    """

    total: Tensor
    weight: float
    correct: Tensor | int = 0
    tokens: int = 0


class Task:
    """Override `model`, `dataset` and `loss`; the rest has defaults.

    Options of the job arrive as keyword arguments.
    """

    def check_memory(self) -> None:
        """Raise UserError when training it needs more memory than this process may count on. Asked before `model`."""

    def model(self) -> nn.Module:
        """A fresh model; torch's generator is seeded just before."""
        raise NotImplementedError

    def dataset(self) -> Sequence[Any]:
        """Training samples; `len()` of it is one epoch. Read by index, from any machine in any order."""
        raise NotImplementedError

    def loss(self, model: nn.Module, batch: Any) -> Loss | Tensor:
        """A `Loss`, or a scalar: the mean over the batch, weighted by its number of samples."""
        raise NotImplementedError

    def heldout(self) -> Sequence[Any] | None:
        """Samples never trained on, or None."""
        return None

    def unseen(self) -> Sequence[Any] | None:
        """Samples of groups never trained on, where that is more than `heldout` says; else the same."""
        return self.heldout()

    def rows(self, samples: list[Any]) -> list[Any]:
        """What a micro-batch counts. Runs in the background; language models tokenise and pack here."""
        return samples

    def micro_batch(self) -> int:
        """Rows computed at once to begin with; the engine halves it whenever memory runs out."""
        return 1024

    def collate(self, rows: list[Any]) -> Any:
        """Rows as one batch of tensors."""
        return torch.utils.data.default_collate(rows)

    def save(self, model: nn.Module, directory: Path) -> None:
        """Write what was trained: `model.safetensors` here, a Hugging Face directory for language models."""
        from safetensors.torch import save_file

        directory.mkdir(parents=True, exist_ok=True)
        # Copies, because trained tensors are views into one vector.
        state = {
            name: tensor.detach().clone(memory_format=torch.contiguous_format)
            for name, tensor in model.state_dict().items()
        }
        save_file(state, str(directory / "model.safetensors"))

    def load(self, directory: Path) -> nn.Module:
        """The network with what `save` wrote. Override both or neither."""
        from safetensors.torch import load_file

        network = self.model()
        network.load_state_dict(load_file(directory / "model.safetensors"))
        return network


def load_task(path: str, options: Options, allow_code: bool) -> Task:
    """Import "module:Class" and call it with `options`.

    Raises `UserError` where code is not allowed, or not there.
    """
    module_name, colon, class_name = path.partition(":")
    if not (module_name and colon and class_name):
        raise UserError(f"task '{path}' is not of the form 'module:Class'")
    if not allow_code:
        raise UserError(f"task '{path}' is a person's own code, and this machine runs none; join with --allow-code")
    made = _made(path, _class(path, module_name, class_name), options)
    missing = [name for name in ("model", "dataset", "loss") if not callable(getattr(made, name, None))]
    if missing:
        raise UserError(f"task '{path}' has no method {missing[0]}(); subclass medley.Task")
    return made


def _made(path: str, found: Any, options: Options) -> Any:
    try:
        inspect.signature(found).bind(**options)
    except TypeError as error:
        raise UserError(f"task_options do not fit task '{path}': {error}") from error
    return found(**options)


def _class(path: str, module_name: str, class_name: str) -> Any:
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name != module_name.split(".")[0] and error.name != module_name:
            raise UserError(f"task '{path}' needs the module '{error.name}', which is not installed here") from error
        raise UserError(f"task '{path}': no module '{module_name}' is installed on this machine") from error
    found = getattr(module, class_name, None)
    if not isinstance(found, type):
        raise UserError(f"task '{path}': module '{module_name}' has no class '{class_name}'")
    return found
