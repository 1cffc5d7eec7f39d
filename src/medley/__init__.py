"""Medley: train, fine-tune and serve domain language models on the machines a group already has.

What Python programs use is here and loads on first use, so that importing the package stays light.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from medley.protocol.version import __version__

if TYPE_CHECKING:
    from medley.api import Result, train
    from medley.engines.task import Loss, Task
    from medley.protocol.errors import MedleyError, UserError
    from medley.protocol.spec import JobSpec

__all__ = ["JobSpec", "Loss", "MedleyError", "Result", "Task", "UserError", "__version__", "train"]

_HOMES = {
    "train": "medley.api",
    "Result": "medley.api",
    "Task": "medley.engines.task",
    "Loss": "medley.engines.task",
    "JobSpec": "medley.protocol.spec",
    "MedleyError": "medley.protocol.errors",
    "UserError": "medley.protocol.errors",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'medley' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
