"""The protocol, the policies and the roles are pure, and nobody reads a clock, polls, or loads code from
bytes.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

from .allowed import RULES, check, entries
from .source import ROOT, Module, calls, everything, imports, is_true, keyword, names_used, package

PURE = {"protocol", "policies", "roles"}
IMPURE_MODULES = {
    *(
        "asyncio",
        "time",
        "uuid",
        "os",
        "io",
        "socket",
        "signal",
        "threading",
        "multiprocessing",
        "subprocess",
    ),
    *("secrets", "concurrent", "tempfile", "shutil", "pathlib", "logging", "structlog", "sqlalchemy"),
    *("torch", "transformers", "grpc", "zmq", "ray"),
}
SEEDED = {"random.Random"}  # the class, given a seed; never the module's own hidden generator
SEEDED_NUMPY = {
    "numpy.random.default_rng",
    "numpy.random.Generator",
    "numpy.random.Philox",
    "numpy.random.PCG64",
}

CODE_FROM_BYTES = {
    "pickle",
    "cPickle",
    "_pickle",
    "dill",
    "cloudpickle",
    "marshal",
    "shelve",
    "joblib",
    "jsonpickle",
}
CLOCKS = {
    *("time.time", "time.time_ns", "time.monotonic", "time.monotonic_ns", "time.process_time"),
    *("time.perf_counter", "time.perf_counter_ns", "datetime.datetime.now", "datetime.datetime.utcnow"),
    *("datetime.datetime.today", "datetime.date.today"),
}
THE_CLOCK = "src/medley/runtimes/clock.py"
SLEEPS = {"time.sleep", "asyncio.sleep", "anyio.sleep"}


def test_pure_rooms_import_nothing_of_the_world() -> None:
    wrong = [
        f"{module.name}:{line} imports {name}"
        for module in _pure()
        for line, name in imports(module)
        if name.partition(".")[0] in IMPURE_MODULES
    ]
    assert not wrong, "\n".join(wrong)


def test_pure_rooms_draw_only_from_seeded_generators() -> None:
    wrong = [
        f"{module.name}:{line} uses {name}" for module in _pure() for line, name in names_used(module) if _hidden(name)
    ]
    wrong += [
        f"{module.name}:{call.lineno} {name} without a seed"
        for module in _pure()
        for call, name in calls(module)
        if name in SEEDED | SEEDED_NUMPY and not call.args and not call.keywords
    ]
    assert not wrong, "\n".join(wrong)


def test_pure_rooms_have_no_coroutines() -> None:
    wrong = [
        f"{module.name}:{node.lineno} is asynchronous"
        for module in _pure()
        for node in ast.walk(module.tree)
        if isinstance(node, ast.AsyncFunctionDef | ast.Await | ast.AsyncFor | ast.AsyncWith)
    ]
    assert not wrong, "\n".join(wrong)


def test_only_one_module_reads_the_clock() -> None:
    wrong = [
        f"{module.name}:{line} reads {name}; take a medley.runtimes.clock.Clock or now_ns instead"
        for module in package()
        if module.name != THE_CLOCK
        for line, name in _names_and_imports(module)
        if name in CLOCKS
    ]
    assert not wrong, "\n".join(wrong)


def test_nothing_runs_code_from_bytes() -> None:
    wrong = [
        f"{module.name}:{line} imports {name}"
        for module in everything()
        for line, name in imports(module)
        if name.partition(".")[0] in CODE_FROM_BYTES
    ]
    wrong += [
        f"{module.name}:{call.lineno} {name}: {sentence}"
        for module in everything()
        for call, name in calls(module)
        if (sentence := _unsafe(call, name))
    ]
    assert not wrong, "\n".join(wrong)


def test_tasks_belong_to_a_task_group() -> None:
    wrong = [
        f"{module.name}:{call.lineno} {name}: a task outside of a TaskGroup loses its exception"
        for module in package()
        for call, name in calls(module)
        if _orphans(name)
    ]
    assert not wrong, "\n".join(wrong)


def test_nothing_polls() -> None:
    breaches = [
        (
            module.name,
            f"{module.name}:{call.lineno} {name}: wait for the thing itself, or explain in allowed.txt",
        )
        for module in package()
        for call, name in calls(module)
        if name in SLEEPS
    ]
    wrong = check("sleep", breaches)
    assert not wrong, "\n".join(wrong)


def test_tests_wait_for_conditions_not_for_time() -> None:
    wrong = [
        f"{module.name}:{call.lineno} {name}"
        for module in everything()
        if module.path.is_relative_to(ROOT / "tests")
        for call, name in calls(module)
        if name in SLEEPS and not _yields_only(call)
    ]
    assert not wrong, "use tests/waiting.py: " + "\n".join(wrong)


def test_the_list_of_exceptions_is_well_formed() -> None:
    for rule, path, reason in entries():
        assert rule in RULES, f"no rule '{rule}'"
        assert (ROOT / path).is_file(), f"no file {path}"
        assert len(reason.split()) >= 3, f"{path} deserves a reason"


@pytest.mark.parametrize(
    ("source", "caught"),
    [
        ("import asyncio as a\na.create_task(f())", True),
        ("import asyncio\nasyncio.get_running_loop().create_task(f())", True),
        ("async def g():\n    async with TaskGroup() as group:\n        group.create_task(f())", False),
    ],
)
def test_the_task_rule_itself(source: str, caught: bool) -> None:
    module = Module(ROOT / "src" / "medley" / "example.py", ast.parse(source))
    assert any(_orphans(name) for _, name in calls(module)) is caught


def _pure() -> Iterator[Module]:
    return (module for module in package() if module.room in PURE and not module.generated)


def _names_and_imports(module: Module) -> Iterator[tuple[int, str]]:
    yield from names_used(module)
    yield from imports(module)


def _hidden(name: str) -> bool:
    if name.startswith("random."):
        return not any(name == good or name.startswith(good + ".") for good in SEEDED)
    if name.startswith("numpy.random."):
        return not any(name == good or name.startswith(good + ".") for good in SEEDED_NUMPY)
    return name in CLOCKS


def _unsafe(call: ast.Call, name: str) -> str:
    if name == "torch.load" and not is_true(keyword(call, "weights_only")):
        return "needs weights_only=True"
    if name == "numpy.load" and is_true(keyword(call, "allow_pickle")):
        return "may not allow pickle"
    if is_true(keyword(call, "trust_remote_code")):
        return "remote code is never trusted"
    if name in {"yaml.load", "yaml.full_load", "yaml.unsafe_load"}:
        return "use yaml.safe_load"
    return "is not for data" if name in {"eval", "exec"} else ""


def _orphans(name: str) -> bool:
    owner, _, method = name.rpartition(".")
    if method == "ensure_future":
        return True
    return method == "create_task" and (owner == "asyncio" or "loop" in owner.rpartition(".")[2])


def _yields_only(call: ast.Call) -> bool:
    """`asyncio.sleep(0)` lets others run; it does not wait."""
    return len(call.args) == 1 and isinstance(call.args[0], ast.Constant) and call.args[0].value == 0


def test_every_task_group_is_the_one_that_keeps_cancellations() -> None:
    wrong = [
        f"{module.name}:{node.lineno}"
        for module in package()
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "asyncio.TaskGroup"
    ]
    assert not wrong, f"use medley.concurrency.TaskGroup: {wrong}"
