"""Plants a bug: the module's source is changed in memory while it is imported; no file is ever touched.

A process has one bug or none, since modules are imported once: whoever hunts starts a process for each.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import CodeType, ModuleType


@dataclass(frozen=True, slots=True)
class Bug:
    """`old` stands exactly once in the module's source; `breaks` are the invariants that may notice `new` first.

    `serving`: worlds that serve are hunted, not worlds that train.
    """

    name: str
    module: str
    old: str
    new: str
    breaks: tuple[str, ...]
    serving: bool = False


class _Changed(SourceFileLoader):
    """Loads one module with one change, past every cache of compiled code."""

    def __init__(self, bug: Bug, path: str) -> None:
        super().__init__(bug.module, path)
        self.bug = bug

    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        source = self.get_data(path).decode()
        return compile(changed(self.bug, source), path, "exec", dont_inherit=True)


class _Finder(MetaPathFinder):
    def __init__(self, bug: Bug) -> None:
        self.bug = bug

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self.bug.module:
            return None
        spec = PathFinder.find_spec(fullname, path)
        assert spec is not None and spec.origin is not None, f"there is no module {fullname}"
        spec.loader = _Changed(self.bug, spec.origin)
        return spec


def plant(bug: Bug) -> None:
    """From now on this process imports `bug.module` with the bug in it."""
    assert bug.module not in sys.modules, f"{bug.module} is imported already"
    sys.meta_path.insert(0, _Finder(bug))


def changed(bug: Bug, source: str) -> str:
    """The source with the bug in it; AssertionError where it does not fit any more."""
    assert source.count(bug.old) == 1, f"{bug.name}: its text stands {source.count(bug.old)} times in {bug.module}"
    return source.replace(bug.old, bug.new)
