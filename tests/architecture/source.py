"""Reads the source tree for the architecture tests: modules, what they import, what they call.

A `Module` is parsed once. `imports` are absolute names as written ("medley.roles.ledger", "torch.nn");
relative imports are resolved; imports inside functions and under TYPE_CHECKING count like any other, because
a direction that only holds at import time is not a direction.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src" / "medley"
_GENERATED = ("_pb2.py", "_pb2_grpc.py")


@dataclass(frozen=True, slots=True)
class Module:
    """One parsed file; `room` is its folder under the package ("" for the package's own root modules)."""

    path: Path
    tree: ast.Module

    @property
    def name(self) -> str:
        return self.path.relative_to(ROOT).as_posix()

    @property
    def room(self) -> str:
        parts = self.path.relative_to(PACKAGE).parts
        return parts[0] if len(parts) > 1 else ""

    @property
    def generated(self) -> bool:
        return self.path.name.endswith(_GENERATED)


@cache
def package() -> tuple[Module, ...]:
    """Every module of the package that people wrote, and those that protoc wrote."""
    return tuple(_parse(PACKAGE))


@cache
def everything() -> tuple[Module, ...]:
    """The package, the tests, the benchmarks and the examples."""
    folders = [PACKAGE, ROOT / "tests", ROOT / "bench", ROOT / "examples", ROOT / "docs"]
    return tuple(module for folder in folders if folder.is_dir() for module in _parse(folder))


def _parse(folder: Path) -> Iterator[Module]:
    for path in sorted(folder.rglob("*.py")):
        yield Module(path, ast.parse(path.read_text(encoding="utf-8"), str(path)))


def imports(module: Module) -> Iterator[tuple[int, str]]:
    """(line, absolute dotted name) of everything a module imports; `from a import b` yields "a.b"."""
    for node in ast.walk(module.tree):
        match node:
            case ast.Import(names=names):
                yield from ((node.lineno, alias.name) for alias in names)
            case ast.ImportFrom(module=source, names=names, level=level):
                base = _absolute(module, source, level)
                yield from ((node.lineno, f"{base}.{alias.name}") for alias in names)


def _absolute(module: Module, source: str | None, level: int) -> str:
    if level == 0:
        return source or ""
    inside = module.path.is_relative_to(PACKAGE)
    parts = module.path.relative_to(PACKAGE.parent if inside else ROOT).with_suffix("").parts
    return ".".join([*parts[: len(parts) - level], *([source] if source else [])])


def aliases(module: Module) -> dict[str, str]:
    """Local name -> the absolute name it stands for, over the whole file."""
    known: dict[str, str] = {}
    for node in ast.walk(module.tree):
        match node:
            case ast.Import(names=names):
                for alias in names:
                    first = alias.name.partition(".")[0]
                    known[alias.asname or first] = alias.name if alias.asname else first
            case ast.ImportFrom(module=source, names=names, level=level):
                base = _absolute(module, source, level)
                known |= {alias.asname or alias.name: f"{base}.{alias.name}" for alias in names}
    return known


def dotted(node: ast.expr) -> str:
    """`a.b().c` as "a.b().c"; "" for anything that is not names, attributes and calls."""
    match node:
        case ast.Name(id=name):
            return name
        case ast.Attribute(value=value, attr=attribute):
            base = dotted(value)
            return f"{base}.{attribute}" if base else f"?.{attribute}"
        case ast.Call(func=called):
            base = dotted(called)
            return f"{base}()" if base else ""
        case _:
            return ""


def names_used(module: Module) -> Iterator[tuple[int, str]]:
    """(line, absolute dotted name) of every attribute chain and name that is read, aliases resolved."""
    known = aliases(module)
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Attribute | ast.Name):
            yield node.lineno, _resolved(dotted(node), known)


def calls(module: Module) -> Iterator[tuple[ast.Call, str]]:
    """Every call with the absolute dotted name of what is called, aliases resolved."""
    known = aliases(module)
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Call):
            yield node, _resolved(dotted(node.func), known)


def _resolved(name: str, known: dict[str, str]) -> str:
    first, dot, rest = name.partition(".")
    return f"{known.get(first, first)}{dot}{rest}"


def keyword(call: ast.Call, name: str) -> ast.expr | None:
    """The expression given for a keyword argument, or None."""
    return next((item.value for item in call.keywords if item.arg == name), None)


def is_true(node: ast.expr | None) -> bool:
    return isinstance(node, ast.Constant) and node.value is True
