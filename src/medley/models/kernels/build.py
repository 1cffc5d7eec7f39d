"""The shared library of this directory's C sources: compiled once for each source, compiler and processor.

It lies below ~/.cache/medley (XDG_CACHE_HOME), which only its owner can write; compiling takes two seconds. What it
needs of OpenMP is what torch has loaded, so that both compute with the same threads. Without a C compiler, on another
system or processor, or with MEDLEY_KERNELS=torch there is none, and `missing` says why.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import torch  # noqa: F401  (loads OpenMP)

HERE = Path(__file__).parent
SOURCES = ("layer.c", "products.c")  # the first has what the others say
COMPILING = ("-O3", "-march=native", "-fopenmp", "-fPIC", "-c")
LINKING = ("-shared", "-nostdlib")  # without OpenMP, which is torch's: not a second one beside it
SWITCH = "MEDLEY_KERNELS"
COMPILE_S = 60
CPUINFO = Path("/proc/cpuinfo")


class _NoKernels(Exception):
    """Says why."""


def library() -> ctypes.CDLL | None:
    """None where there is none; `missing` says why."""
    return _found()[0]


def missing() -> str:
    """Why there is none; empty where there is."""
    return _found()[1]


@cache
def _found() -> tuple[ctypes.CDLL | None, str]:
    try:
        return _load(_compiled()), ""
    except _NoKernels as why:
        return None, str(why)


def _compiled() -> Path:
    if switch := os.environ.get(SWITCH, ""):
        raise _NoKernels(
            f"{SWITCH} is '{switch}'" + ("" if switch == "torch" else "; it can be 'torch', or not be set")
        )
    if not sys.platform.startswith("linux") or platform.machine() != "x86_64":
        raise _NoKernels("they are written for Linux on x86-64")
    compiler = _compiler()
    made = _directory() / f"kernels-{_digest(compiler)}.so"
    if not made.exists():
        _compile(compiler, made)
    return made


def _compiler() -> list[str]:
    """With arguments, if CC has some, as in "ccache gcc"."""
    try:
        wanted = shlex.split(os.environ.get("CC", ""))
    except ValueError as error:
        raise _NoKernels(f"CC cannot be read ({error})") from error
    for name, *arguments in filter(None, (wanted, ["cc"], ["gcc"])):
        found = shutil.which(name)
        if found is not None:
            return [found, *arguments]
    raise _NoKernels("no C compiler is installed")


def _directory() -> Path:
    """Whoever could write there could have this process run anything; so could whoever may turn a link on the way."""
    try:
        directory = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "medley"
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        directory = directory.resolve()
        state = directory.stat()
    except (OSError, RuntimeError) as error:  # without a home, or with links in a circle: the latter
        raise _NoKernels(f"there is no place for what is compiled ({error})") from error
    if state.st_uid != os.getuid() or state.st_mode & 0o022:
        raise _NoKernels(f"'{directory}' can be written by others")
    return directory


def _digest(compiler: list[str]) -> str:
    """Of all that the result depends on. A home directory may be shared between machines."""
    which = Path(compiler[0]).resolve()
    try:
        processor = next((line for line in CPUINFO.read_text().splitlines() if line.startswith("flags")), "")
        sources, changed_ns = [(HERE / name).read_bytes() for name in SOURCES], which.stat().st_mtime_ns
    except OSError as error:
        raise _NoKernels(str(error)) from error
    whole = sources, COMPILING, LINKING, processor, which, compiler[1:], changed_ns
    return hashlib.sha256(repr(whole).encode()).hexdigest()[:32]


def _compile(compiler: list[str], made: Path) -> None:
    try:
        with tempfile.TemporaryDirectory(dir=made.parent) as scratch:
            fresh = Path(scratch) / made.name
            half = str(fresh.with_suffix(".o"))
            _run([*compiler, *COMPILING, "-o", half, str(HERE / SOURCES[0])])
            _run([*compiler, *LINKING, "-o", str(fresh), half, "-lc"])
            _settle(fresh)
            fresh.replace(made)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _NoKernels(f"'{compiler[0]}' could not compile them ({error})") from error


def _run(command: list[str]) -> None:
    """What is made is its owner's alone, whatever the umask, and complaints are in English."""
    speech = {**os.environ, "LC_ALL": "C"}
    done = subprocess.run(
        command, capture_output=True, errors="replace", timeout=COMPILE_S, check=False, umask=0o077, env=speech
    )
    if done.returncode:
        raise _NoKernels(f"'{command[0]}' says: {_complaint(done.stderr) or f'status {done.returncode}'}")


def _settle(fresh: Path) -> None:
    """On the disk before it gets its name: half a library would stay there for ever."""
    with fresh.open("rb") as written:
        os.fsync(written.fileno())


def _complaint(said: str) -> str:
    return next((line.strip() for line in said.splitlines() if "error" in line), "")


def _load(made: Path) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(str(made))
    except OSError as error:
        raise _NoKernels(f"'{made}' cannot be loaded ({error})") from error
