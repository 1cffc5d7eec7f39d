"""What a person means by MODEL: a job, a directory in Hugging Face format, or a name on the hub; always a
directory.

A name that looks like a path (it has a separator, or is "." or "..") is never taken for a job. Reads the
disk and, for hub names only, the network; loads no weights.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from medley.engines.hub import hub_directory
from medley.jobs.home import home
from medley.jobs.names import is_of
from medley.protocol.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from medley.engines.generate import Generator

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?")


@dataclass(frozen=True, slots=True)
class Resolved:
    """Where the model is, what it is called in answers, and which of the three it was."""

    name: str
    directory: Path
    kind: Literal["job", "directory", "hub"]


def exported_jobs(state_dir: Path) -> list[str]:
    """Identifiers of the jobs whose model is ready."""
    return sorted({export.name for export in _exports(state_dir)})


def find_export(job: str, state_dir: Path) -> Path | None:
    """The directory that a job exported: by its identifier, else the newest of that name; or None."""
    exports = _exports(state_dir)
    exact = [export for export in exports if export.name == job]
    named = [export for export in exports if "/" not in job and job and is_of(export.name, job)]
    return max(exact or named, key=lambda export: export.stat().st_mtime_ns, default=None)


def shortest_name(export: Path, *names: str) -> str:
    """The first of these names by which a person here reaches that export, else its path."""
    result = export.resolve()
    for name in names:
        found = find_export(name, home())
        if found is not None and found.resolve() == result:
            return name
    return str(export)


def _exports(state_dir: Path) -> list[Path]:
    """A person's own, those of the coordinator that runs here, and those of runs with a pool of their own."""
    roots = [state_dir / "exports", state_dir / "coordinator" / "exports", *state_dir.glob("runs/*/exports")]
    return [export for root in roots if root.is_dir() for export in root.iterdir() if export.is_dir()]


def resolve_model(model: str, state_dir: Path | None = None, download: Callable[[str], Path] | None = None) -> Resolved:
    """The directory of MODEL. Raises UserError, with the three possibilities, when it is none of them.

    `download`, of a hub name: in place of the usual one, which looks whether all that is needed came.
    """
    state = state_dir or home()
    looks_like_path = model in {".", ".."} or os.path.isabs(model) or model.startswith((".", "~"))
    export = None if looks_like_path else find_export(model, state)
    if export is not None:
        return Resolved(model, checked(export), "job")
    path = Path(model).expanduser()
    if path.is_dir():
        return Resolved(path.resolve().name, checked(path), "directory")
    if looks_like_path or not HUB_NAME.fullmatch(model):
        raise UserError(
            f"there is no directory '{model}': give a job, a directory in Hugging Face format, or a hub name"
        )
    try:
        return Resolved(model, (download or _downloaded)(model), "hub")
    except OSError as error:
        raise UserError(_none_of_three(model, exported_jobs(state), error)) from error


def _downloaded(name: str) -> Path:
    return checked(hub_directory(name))


def open_generator(model: str, dtype: str = "auto") -> tuple[Resolved, Generator]:
    """MODEL in memory, ready to answer. Raises UserError."""
    resolved = resolve_model(model)
    from medley.engines.generate import Generator  # torch: only once the name is known to be good

    return resolved, Generator.load(resolved.directory, dtype, resolved.name)


def checked(directory: Path) -> Path:
    """The directory itself, when it holds a model or an adapter with safetensors; UserError when not."""
    if (directory / "adapter_config.json").is_file():
        wanted = ["adapter_model.safetensors"]
    elif (directory / "config.json").is_file():
        wanted = ["model.safetensors", "model.safetensors.index.json"]
    else:
        raise UserError(f"'{directory}' is not a model directory: it has neither config.json nor adapter_config.json")
    if not any((directory / name).is_file() for name in wanted):
        raise UserError(f"'{directory}' has no weights in safetensors format: expected {' or '.join(wanted)}")
    return directory


def _none_of_three(model: str, jobs: list[str], error: OSError) -> str:
    guess = f"; {did_you_mean(model, jobs)}" if jobs else ""
    return (
        f"'{model}' is no finished job ({len(jobs)} here{guess}), no directory in Hugging Face format, "
        f"and as a hub name: {error}"
    )
