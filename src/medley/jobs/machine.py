"""Checks of this machine alone: room, memory, processor, libraries. Opens no connection."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from medley.jobs.finding import Finding
from medley.protocol.version import __version__
from medley.runtimes.clock import SystemClock

GIB = 1 << 30
LIBRARIES = ("torch", "transformers", "peft", "tokenizers", "grpcio", "pyzmq")
SLOW_GFLOPS = 20.0


def check_machine(directory: Path) -> Iterator[Finding]:
    """Every finding about this machine; `directory` is where state would go. Measures for about a second."""
    yield Finding("ok", "medley", f"{__version__}, Python {platform.python_version()}, {platform.platform(terse=True)}")
    yield _libraries()
    yield _disk(directory)
    yield _memory()
    yield from _compute()


def _libraries() -> Finding:
    found, missing = [], []
    for name in LIBRARIES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            missing.append(name)
    if missing:
        return Finding("fail", "libraries", f"missing: {', '.join(missing)}", "install medley-lm again")
    return Finding("ok", "libraries", ", ".join(found))


def _disk(directory: Path) -> Finding:
    there = next(path for path in (directory.absolute(), *directory.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free
    says = f"{free / GIB:.1f} GiB free for {directory}"
    if not os.access(there, os.W_OK | os.X_OK):
        return Finding("fail", "disk", f"{there} cannot be written", "set MEDLEY_HOME to a directory of yours")
    if free < GIB:
        return Finding("fail", "disk", says, "free some, or set MEDLEY_HOME to a larger disk")
    if free < 10 * GIB:
        return Finding("warn", "disk", says, "checkpoints of a 1 B model need about 12 GiB each: mind the size")
    return Finding("ok", "disk", says)


def _memory() -> Finding:
    import psutil

    memory = psutil.virtual_memory()
    says = f"{memory.available / GIB:.1f} of {memory.total / GIB:.1f} GiB free"
    if memory.available < GIB:
        return Finding("fail", "memory", says, "close other programs: a worker of the smallest model needs 1 GiB")
    if memory.available < 3 * GIB:
        return Finding("warn", "memory", says, "enough for small models with one or two workers")
    return Finding("ok", "memory", says)


def _compute() -> Iterator[Finding]:
    try:
        from medley.engines.probe import probe
    except (ImportError, OSError) as error:
        yield Finding("fail", "compute", f"torch cannot be loaded ({error})", "install torch for this machine again")
        return
    found = probe(SystemClock().now_ns)
    cores = f"{os.cpu_count()} cores, {found.threads} threads"
    features = f", {' '.join(found.features)}" if found.features else ""
    yield Finding("ok", "processor", f"{found.device}: {cores}{features}")
    speed = f"{found.fp32_gflops:.0f} GFLOP/s in fp32, {found.bf16_gflops:.0f} in bf16"
    if found.fp32_gflops < SLOW_GFLOPS:
        yield Finding("warn", "speed", speed, "slow for training: is something else running? It can still keep shards")
    elif found.native_bf16:
        yield Finding("ok", "speed", f"{speed}; dtype auto means bf16")
    else:
        yield Finding("ok", "speed", f"{speed}; no bf16 instructions, so dtype auto means fp32")
    yield _kernels()


def _kernels() -> Finding:
    """Whether answers come as fast as weights can be read; without them torch answers, at about half of that."""
    from medley.models.kernels.build import missing

    why = missing()
    return Finding("ok", "kernels", f"torch's: {why}" if why else "compiled for this processor")
