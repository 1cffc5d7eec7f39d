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
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import torch  # noqa: F401  (loads OpenMP)

HERE = Path(__file__).parent
SOURCES = ("layer.c", "products.c")  # the first has what the others say
FLAGS = ("-O3", "-march=native", "-fopenmp", "-shared", "-fPIC", "-nostdlib")  # -nostdlib: not OpenMP a second time
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
    if os.environ.get(SWITCH) == "torch":
        raise _NoKernels(f"{SWITCH} is 'torch'")
    if not sys.platform.startswith("linux") or platform.machine() != "x86_64":
        raise _NoKernels("they are written for Linux on x86-64")
    compiler = shutil.which(os.environ.get("CC") or "cc") or shutil.which("gcc")
    if compiler is None:
        raise _NoKernels("no C compiler is installed")
    made = _directory() / f"kernels-{_digest(compiler)}.so"
    if not made.exists():
        _compile(compiler, made)
    return made


def _directory() -> Path:
    """Whoever could write there could have this process run anything."""
    directory = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "medley"
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        state = directory.stat()
    except (OSError, RuntimeError) as error:
        raise _NoKernels(f"'{directory}' cannot be made ({error})") from error
    if state.st_uid != os.getuid() or state.st_mode & 0o022:
        raise _NoKernels(f"'{directory}' can be written by others")
    return directory


def _digest(compiler: str) -> str:
    """Of all that the result depends on. A home directory may be shared between machines."""
    processor = next((line for line in CPUINFO.read_text().splitlines() if line.startswith("flags")), "")
    which = Path(compiler).resolve()
    whole = [(HERE / name).read_bytes() for name in SOURCES], FLAGS, processor, which, which.stat().st_mtime_ns
    return hashlib.sha256(repr(whole).encode()).hexdigest()[:32]


def _compile(compiler: str, made: Path) -> None:
    try:
        with tempfile.TemporaryDirectory(dir=made.parent) as scratch:
            fresh = Path(scratch) / made.name
            command = [compiler, *FLAGS, "-o", str(fresh), str(HERE / SOURCES[0]), "-lc"]
            done = subprocess.run(command, capture_output=True, text=True, timeout=COMPILE_S, check=False)
            if done.returncode:
                raise _NoKernels(f"'{compiler}' says: {_complaint(done.stderr) or f'status {done.returncode}'}")
            fresh.replace(made)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _NoKernels(f"'{compiler}' could not compile them ({error})") from error


def _complaint(said: str) -> str:
    return next((line.strip() for line in said.splitlines() if "error" in line), "")


def _load(made: Path) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(str(made))
    except OSError as error:
        raise _NoKernels(f"'{made}' cannot be loaded ({error})") from error
