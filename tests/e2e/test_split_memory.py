"""Models of real shapes over three processes, none of which may hold them whole: each takes what was planned for it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from bench.killing import processes
from bench.pipeline_rig import Rig
from bench.shapes import config_of, write
from tests.e2e.test_memory import V1, V2
from tests.serving.conftest import byte_tokenizer

from medley.engines.sampling import Sampling
from medley.jobs.planning import subject
from medley.models.memory import SHARE
from medley.policies.pipeline.describe import Wanted
from medley.policies.pipeline.ground import stage_nbytes
from medley.runtimes.local import Pool
from medley.serving.fleet import ServeOptions, even_pins, open_pipelined
from medley.transports.control.operator import OperatorClient
from medley.transports.identity import Credentials

NAMES = ["worker-1", "worker-2", "worker-3"]
KV_TOKENS = 256
SHARD_NBYTES = 500 << 20
BESIDE_NBYTES = 400 << 20  # the machine's other process, and files that the system has just read
TOLERANCE = 0.15


@contextlib.contextmanager
def limited(pids: dict[str, int], nbytes: int) -> Iterator[None]:
    """Each of these processes, and what it starts, in a control group with so much memory. Skips where none can be."""
    root, knob = (V1, "memory.limit_in_bytes") if V1.is_dir() else (V2, "memory.max")
    groups = {name: root / f"medley-split-{os.getpid()}-{name}" for name in pids}
    try:
        for name, group in groups.items():
            group.mkdir()
            (group / knob).write_text(str(nbytes))
            (group / "cgroup.procs").write_text(str(pids[name]))
        yield
    except PermissionError:
        pytest.skip("no control group can be made here")
    finally:
        for group in groups.values():
            _dissolved(root, group)


def _dissolved(root: Path, group: Path) -> None:
    if not group.is_dir():
        return
    for pid in (group / "cgroup.procs").read_text().split():
        with contextlib.suppress(OSError):
            (root / "cgroup.procs").write_text(pid)
    with contextlib.suppress(OSError):
        group.rmdir()


@contextlib.contextmanager
def rig(model: Path, directory: Path, nbytes: int, options: ServeOptions) -> Iterator[Rig]:
    """The model over three machines of so much memory."""
    environment = {SHARE: "1"}  # each has a group of its own
    with Pool(directory, len(NAMES), 0, environment=environment) as pool:
        pool.wait_ready()
        found = processes(pool.pid)
        with limited({name: found[name] for name in NAMES}, nbytes):

            def operator() -> OperatorClient:
                return OperatorClient(pool.address["control"], Credentials.load(directory / "operator.pem"))

            served = open_pipelined(str(model), options, "127.0.0.1", False, operator)
            served.engine.start()
            try:
                made = Rig(pool, served)
                made.wait_serving()
                yield made
            finally:
                served.engine.close()
                pool.stop()


def peak_nbytes(pid: int) -> int:
    """What this process held at most at once."""
    lines = Path(f"/proc/{psutil.Process(pid).pid}/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("shape", ["tinyllama-1.1b", "opt-1.3b"])
async def test_a_model_that_no_process_may_hold_is_served_in_the_memory_that_was_planned(
    shape: str, tmp_path: Path
) -> None:
    model = tmp_path / shape
    write(config_of(shape, None), model, SHARD_NBYTES)
    byte_tokenizer().save_pretrained(str(model))
    of = subject(str(model), "bf16").shape
    pins = even_pins(NAMES, of.layers)
    wanted = Wanted(kv_tokens=KV_TOKENS)
    counts = [int(pair.partition("=")[2]) for pair in pins.split(",")]
    planned = [stage_nbytes(of, wanted, n, i == 0, i == len(counts) - 1) for i, n in enumerate(counts)]
    limit = max(planned) + BESIDE_NBYTES
    assert limit < of.nbytes + wanted.process_nbytes, "a limit under which the whole model would fit shows nothing"
    options = ServeOptions("bf16", pins=pins, expected=3, local=True, kv_tokens=KV_TOKENS)
    with rig(model, tmp_path / "pool", limit, options) as made:
        told = await made.ask([3 + i for i in range(40)], Sampling(12, logprobs=0))
        assert len(told.tokens) == 12
        stages = made.stages()
        peaks = [peak_nbytes(stages[name]) for name in NAMES]
    print({"shape": shape, "limit_mib": limit >> 20, "planned_mib": [n >> 20 for n in planned],
           "peak_mib": [n >> 20 for n in peaks]})  # fmt: skip
    assert peaks == pytest.approx(planned, rel=TOLERANCE)
