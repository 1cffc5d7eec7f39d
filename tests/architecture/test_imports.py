"""Imports point one way, heavy libraries stay in their rooms, and start-up loads none of them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from .source import PACKAGE, Module, imports, package

# Room -> the rooms it may import, besides itself. A room that is not here does not exist in the architecture.
_KERNELS = {"compression", "aggregation", "privacy", "data", "models"}
_BESIDE = {"store", "transports"}
_BELOW_RUNTIMES = {"protocol", "policies", "roles", "engines"} | _KERNELS | _BESIDE | {"observe"}
MAY_IMPORT: dict[str, set[str]] = {
    "protocol": set(),
    "policies": {"protocol"},
    "roles": {"protocol", "policies"},
    "observe": {"protocol"},
    **{room: {"protocol"} for room in _KERNELS},
    **{room: {"protocol", "observe"} for room in _BESIDE},
    "engines": {"protocol", "observe"} | _KERNELS,
    "runtimes": _BELOW_RUNTIMES,
    "jobs": _BELOW_RUNTIMES | {"runtimes", "serving"},
    "serving": _BELOW_RUNTIMES | {"runtimes", "jobs"},
    "integrations": _BELOW_RUNTIMES | {"runtimes", "jobs", "serving"},
    "dashboard": _BELOW_RUNTIMES | {"runtimes", "jobs", "serving"},
    "cli": _BELOW_RUNTIMES | {"runtimes", "jobs", "serving", "dashboard", "integrations"},
}
_HELP = """
import sys
from medley.cli.main import run
assert run(["--help"]) == 0
"""
TORCH_ROOMS = {"models", "engines", "compression", "aggregation", "privacy"}
TORCH_LIKE = {"torch", "transformers", "peft", "safetensors.torch"}
# The simulator trains real tiny models where an experiment asks for it; everything else of it runs without torch.
TORCH_FILES = {f"src/medley/runtimes/simulated/arithmetic/{name}.py" for name in ("real", "tasks")}
# The package's root modules are what people import (`medley.train`, `medley.Task`): they may reach
# everywhere, but lazily, which the start-up test checks.


def test_rooms_import_only_what_lies_below_them() -> None:
    wrong = [
        f"{module.name}:{line} {module.room} may not import {room}"
        for module in package()
        if module.room
        for line, name in imports(module)
        if (room := _room_of(name)) and room != module.room and room not in MAY_IMPORT[module.room]
    ]
    assert not wrong, "\n".join(wrong)


def test_every_room_is_in_the_architecture() -> None:
    rooms = {module.room for module in package()} - {""}
    assert rooms <= MAY_IMPORT.keys(), f"rooms nobody planned: {sorted(rooms - MAY_IMPORT.keys())}"


def test_pure_rooms_know_nothing_of_the_package_root() -> None:
    wrong = [
        f"{module.name}:{line} imports {name}"
        for module in package()
        if module.room in {"protocol", "policies", "roles"}
        for line, name in imports(module)
        if name.startswith("medley.") and not _room_of(name)
    ]
    assert not wrong, "\n".join(wrong)


def test_torch_lives_only_with_the_engines_and_the_kernels() -> None:
    wrong = [
        f"{module.name}:{line} imports {name}"
        for module in package()
        if module.room not in TORCH_ROOMS and module.name not in TORCH_FILES
        for line, name in imports(module)
        if any(name == heavy or name.startswith(heavy + ".") for heavy in TORCH_LIKE)
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("code", ["import medley, sys", _HELP], ids=["import medley", "medley --help"])
def test_start_up_loads_nothing_heavy(code: str) -> None:
    heavy = {"torch", "transformers", "grpc", "numpy", "zmq", "sqlalchemy", "starlette"}
    report = "print(*sorted({name.partition('.')[0] for name in sys.modules}), file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{report}"], capture_output=True, text=True, timeout=60, check=True
    )
    assert not heavy & set(done.stderr.split())


@pytest.mark.parametrize("room", ["protocol", "policies", "roles"])
def test_the_pure_rooms_load_without_torch(room: str) -> None:
    modules = [_dotted(module) for module in package() if module.room == room]
    if not modules:
        pytest.skip(f"no {room} yet")
    heavy = "{'torch', 'transformers', 'grpc', 'zmq'}"
    code = f"import sys, {', '.join(modules)}\nprint(*({heavy} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert not done.stdout.split()


def _room_of(name: str) -> str:
    """The room of `medley.roles.ledger` is "roles"; "" for what is not ours, and for the root modules."""
    parts = name.split(".")
    if parts[0] != "medley" or len(parts) < 2:
        return ""
    return parts[1] if (PACKAGE / parts[1]).is_dir() else ""


def _dotted(module: Module) -> str:
    relative: Path = module.path.relative_to(PACKAGE.parent).with_suffix("")
    return ".".join(part for part in relative.parts if part != "__init__")
