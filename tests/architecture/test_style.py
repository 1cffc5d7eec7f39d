"""The habits that a reader relies on: short functions, narrow handlers, names that say something, clean
files.
"""

from __future__ import annotations

import ast
import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from .allowed import check
from .source import ROOT, Module, package

MAX_FUNCTION_LINES = 70
EMPTY_NAMES = re.compile(r"(Manager|Helper|Handler|Utils?)$")
DRAWERS = {"utils.py", "util.py", "helpers.py", "helper.py", "misc.py", "common.py"}
# Spelled in pieces, so that this file does not name what it forbids.
FOREIGN = re.compile(
    "|".join(
        [
            r"(?<![\w./-])/" + r"(?:work|root)/",
            r"(?<![\w.])/" + r"home/\w",
            r"/" + r"Users/\w",
            r"/opt/" + r"(?:venv|wheels|pypi)",
            r"/tmp/" + r"medley/",
            "py" + r"pi\.org",
            "python" + r"hosted\.org",
            r"download\." + r"pytorch\.org",
            "ana" + r"conda\.(?:org|com)",
        ]
    )
)


def test_functions_stay_short() -> None:
    breaches = [
        (module.name, f"{module.name}:{function.lineno} {function.name} has {length} lines")
        for module in _written()
        for function in _functions(module)
        if (length := (function.end_lineno or function.lineno) - function.lineno + 1) > MAX_FUNCTION_LINES
    ]
    wrong = check("length", breaches)
    assert not wrong, "\n".join(wrong)


def test_broad_handlers_stand_only_at_the_outermost_edges() -> None:
    breaches = [
        (module.name, f"{module.name}:{node.lineno} catches everything")
        for module in _written()
        for node in ast.walk(module.tree)
        if isinstance(node, ast.ExceptHandler) and _is_broad(node.type) and not _passes_on(node)
    ]
    wrong = check("except", breaches)
    assert not wrong, "\n".join(wrong)


def test_names_say_something() -> None:
    wrong = [f"{module.name} is a drawer" for module in _written() if module.path.name in DRAWERS]
    wrong += [
        f"{module.name}:{node.lineno} class {node.name}"
        for module in _written()
        for node in _classes(module)
        if EMPTY_NAMES.search(node.name)
    ]
    assert not wrong, "\n".join(wrong)


def test_no_two_public_classes_of_one_folder_share_a_name() -> None:
    found = Counter(
        (module.path.parent.name, node.name)
        for module in _written()
        for node in module.tree.body
        if _is_public_class(node)
    )
    twice = [f"{folder}: {name}" for (folder, name), count in found.items() if count > 1]
    assert not twice, "\n".join(twice)


def test_every_module_says_what_it_is() -> None:
    silent = [module.name for module in _written() if module.tree.body and not ast.get_docstring(module.tree)]
    assert not silent, "\n".join(silent)


def test_no_file_names_this_machine_or_a_registry() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}"
        for path in _tracked()
        for number, line in enumerate(_text(path).splitlines(), start=1)
        if FOREIGN.search(line)
    ]
    assert not wrong, "\n".join(wrong)


def _written() -> Iterator[Module]:
    return (module for module in package() if not module.generated)


def _functions(module: Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(module.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def _classes(module: Module) -> Iterator[ast.ClassDef]:
    return (node for node in ast.walk(module.tree) if isinstance(node, ast.ClassDef))


def _is_public_class(node: ast.stmt) -> bool:
    return isinstance(node, ast.ClassDef) and not node.name.startswith("_")


def _is_broad(caught: ast.expr | None) -> bool:
    match caught:
        case None:
            return True
        case ast.Name(id="Exception" | "BaseException"):
            return True
        case ast.Tuple(elts=several):
            return any(_is_broad(one) for one in several)
        case _:
            return False


def _passes_on(handler: ast.ExceptHandler) -> bool:
    """Whether the handler only cleans up: its last statement is a bare `raise`."""
    last = handler.body[-1]
    return isinstance(last, ast.Raise) and last.exc is None


def _tracked() -> list[Path]:
    try:
        listed = subprocess.run(
            ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, timeout=30, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    return [path for name in listed.stdout.split("\0") if name and (path := ROOT / name).is_file()]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return ""
