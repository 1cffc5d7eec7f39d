"""With MEDLEY_COMPILED=1, `pip install` compiles the hot modules of the simulator; without it, this does nothing.

mypyc turns the modules that pyproject.toml lists into C and a C compiler turns that into extensions, which lie beside
their sources and are imported instead of them. An editable install stays interpreted: an extension would hide edits.
"""

from __future__ import annotations

import os
import tempfile
from contextlib import chdir
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

WANTED = os.environ.get("MEDLEY_COMPILED", "") == "1"


class CompiledModules(BuildHookInterface[Any]):
    def dependencies(self) -> list[str]:
        return list(self.config["needs"]) if WANTED else []

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if not WANTED:
            return
        if version == "editable":
            self.app.abort("MEDLEY_COMPILED=1 is for `pip install .`: an editable install (-e) stays interpreted")
        # Kept until the process ends: the wheel is packed after this returns.
        self.kept = tempfile.TemporaryDirectory()
        built = compile_modules(Path(self.root, "src"), self.config, Path(self.kept.name))
        build_data["force_include"].update({str(path): name for name, path in built.items()})
        build_data["pure_python"] = False
        build_data["infer_tag"] = True

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        if WANTED:
            self.kept.cleanup()


def compile_modules(src: Path, config: dict[str, Any], work: Path) -> dict[str, Path]:
    """The extensions, by where in the wheel they belong."""
    from mypyc.build import mypycify
    from setuptools import Distribution

    said = ["--config-file=", f"--cache-dir={work / 'cache'}", "--follow-imports=silent", "--ignore-missing-imports"]
    paths = sorted({str(p.relative_to(src)) for pattern in config["modules"] for p in src.glob(pattern)})
    chosen = [path for path in paths if path not in config["interpreted"] and not path.endswith("__init__.py")]
    with chdir(src):
        extensions = mypycify([*said, *chosen], opt_level="2", group_name="medley", target_dir=str(work / "c"))
        command = Distribution({"name": "medley", "ext_modules": extensions}).get_command_obj("build_ext")
        command.build_lib, command.build_temp = str(work / "lib"), str(work / "objects")
        command.ensure_finalized()
        command.run()
    return {str(path.relative_to(work / "lib")): path for path in (work / "lib").rglob("*") if path.is_file()}
