"""Training from Python: `medley.train(job)` runs a job to its end and gives back what it learned.

Promises: a person's mistake is one UserError; a pool started here is ended, with everything saved, whatever
happens; a `Task` of the person's own script is found by the processes that need it.
Leaves to others: what a job is (`protocol.spec`), running it (`runtimes.local`), loading results (`engines`).
"""

from __future__ import annotations

import importlib.util
import os
import secrets
import site
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

import msgspec

from medley.protocol.errors import UserError, did_you_mean
from medley.protocol.spec import JobSpec

if TYPE_CHECKING:
    from medley.engines.task import Task
    from medley.transports.control.operator import OperatorClient

Event = dict[str, Any]
Job = "JobSpec | Mapping[str, Any] | str | Path | type[Task]"

INSIDE = "MEDLEY_INSIDE_POOL"  # says to a script that a pool's process imports it, rather than a person


@dataclass(frozen=True, slots=True)
class Result:
    """What a job came to. `history` holds its commits, measurements and states, oldest first.

    `loss` is that of the last commit; held-out figures are None where nothing was held out. `seconds` counts
    training alone. `path` is the directory that the job exported.
    """

    job: str
    state: str
    spec: JobSpec
    loss: float | None
    heldout_first: float | None
    heldout_last: float | None
    accuracy: float | None
    seconds: float
    samples: int
    path: Path | None
    history: tuple[Event, ...] = field(repr=False, default=())
    _task: type[Task] | None = field(repr=False, default=None)

    def model(self) -> Any:
        """The trained torch module in evaluation mode: adapters merged for a language model, else the task's own.

        Raises UserError where the job left no result, or its task cannot be imported here.
        """
        if self.path is None:
            raise UserError(f"job {self.job} is {self.state} and left no result to load")
        if not self.spec.task:
            from medley.engines.stored import load_stored

            return load_stored(self.path, self.spec.model.dtype)[0].eval()
        from medley.engines.task import load_task

        options = self.spec.task_options
        task = self._task(**options) if self._task else load_task(self.spec.task, options, allow_code=True)
        return task.load(self.path).eval()

    def answer(self, question: str, max_tokens: int = 256) -> str:
        """What the trained language model says, taking the likeliest token each time; the model is loaded anew.

        Raises UserError where the job left no language model.
        """
        if self.path is None or self.spec.task:
            raise UserError(f"job {self.job} is {self.state} and left no language model to ask")
        from medley.engines.generate import Generator

        return Generator.load(self.path, self.spec.model.dtype).answer(question, max_tokens)


def train(
    job: Any,
    *,
    workers: int = 2,
    directory: str | Path | None = None,
    coordinator: str | Path | None = None,
    on_event: Callable[[Event], None] | None = None,
    **sets: Any,
) -> Result:
    """Train `job` and wait for the result.

    `job` is a `Task` class or its "module:Class", a job file (YAML or JSON), a dict with the same keys, or a
    `JobSpec`. Keywords override its options: a group by name (`train={"epochs": 3}`), or any option by the
    end of its path, with `__` for the dots (`epochs=3`, `optimizer__lr=1e-3`).

    Without `coordinator`, `workers` processes train on this machine; their state is in `directory` (none: a new
    one in MEDLEY_HOME/runs), and the same call with the same directory goes on with a run that was interrupted.
    `coordinator` is the directory of one that runs already; its machines must allow code to run a `Task`.
    `on_event` hears every commit, measurement and change of state. Raises UserError for a job that cannot run
    or failed, Unavailable when the coordinator does not come back.
    """
    if os.environ.get(INSIDE):
        raise UserError("medley.train was called while a worker imported this script; put the call below "
                        "'if __name__ == \"__main__\":'")  # fmt: skip
    from medley.jobs.listening import history

    task, places = _own_code(job)
    spec = _spec(job if task is None else task, sets)
    heard: list[Event] = []

    def hear(event: Event) -> None:
        heard.append(event)
        if on_event is not None:
            on_event(event)

    with _client(spec, coordinator, directory, workers, places) as client:
        name = _unfinished(client, spec) or str(client.ask("submit", {"spec": msgspec.to_builtins(spec)})["job"])
        answer = _followed(client, name, hear)
        heard.extend(history(client, name))
    if answer["job"]["state"] == "failed":
        raise UserError(f"job {name} failed: {answer['job']['reason']}")
    return _result(answer, spec, heard, job if isinstance(job, type) else None)


# -- the job ----------------------------------------------------------------------------------------------------


def _spec(job: Any, sets: Mapping[str, Any]) -> JobSpec:
    """The job with its overrides, checked. Raises UserError."""
    from medley.jobs.check import check
    from medley.jobs.load import job_from_dict, load_job

    match job:
        case JobSpec():
            data: dict[str, Any] = msgspec.to_builtins(job)
        case Mapping():
            data = msgspec.to_builtins(dict(job))
        case str() if ":" in job and not Path(job).exists():
            data = {"name": job.partition(":")[2].lower() or "task", "task": job, "data": {"source": "task"}}
        case str() | Path():
            data = msgspec.to_builtins(load_job(Path(job)))
        case _:
            raise UserError(f"a job is a Task class, a job file, a dict or a JobSpec, not {type(job).__name__}")
    for key, value in sets.items():
        _override(data, _option(key), value)
    spec = job_from_dict(data, "this job")
    check(spec)
    return spec


def _override(data: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    for name in path[:-1]:
        data = data.setdefault(name, {})
    old = data.get(path[-1])
    if isinstance(value, Mapping) and isinstance(old, dict):
        for key, inner in value.items():
            _override(old, (key,), inner)
    else:
        data[path[-1]] = msgspec.to_builtins(value)


def _option(keyword: str) -> tuple[str, ...]:
    """The one option whose path ends like this. Raises UserError for none and for several."""
    wanted = tuple(keyword.split("__"))
    paths = list(_paths(JobSpec))
    if wanted in paths:
        return wanted
    found = [path for path in paths if path[-len(wanted) :] == wanted]
    found = [path for path in found if path == ("train", *wanted)] or found  # `seed` is that of the training
    if len(found) == 1:
        return found[0]
    if not found:
        raise UserError(f"train() has no option '{keyword}'; {did_you_mean(wanted[-1], {p[-1] for p in paths})}")
    choices = " or ".join("__".join(path[-len(wanted) - 1 :]) for path in found)
    raise UserError(f"'{keyword}' is not one option but {len(found)}; write {choices}")


def _paths(group: type, above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    kinds = get_type_hints(group)
    for one in fields(group):
        here = (*above, one.name)
        yield here
        if is_dataclass(kinds[one.name]):
            yield from _paths(kinds[one.name], here)


# -- a person's own code ----------------------------------------------------------------------------------------


def _own_code(job: Any) -> tuple[str | None, tuple[str, ...]]:
    """("module:Class" of a class, or None; the folders from which other processes import the job's task)."""
    if isinstance(job, type):
        module = _module_of(job)
        return f"{module}:{job.__qualname__}", _folders(module)
    named = job.task if isinstance(job, JobSpec) else job.get("task", "") if isinstance(job, Mapping) else job
    module, colon, _ = str(named).partition(":")
    return None, _folders(module) if colon and module.replace(".", "").isidentifier() else ()


def _module_of(task: type) -> str:
    """How another process imports this class. Raises UserError for one that lives in no file."""
    if "." in task.__qualname__:
        raise UserError(f"{task.__qualname__} is defined inside something else; move it to the top of its file")
    if task.__module__ != "__main__":
        return task.__module__
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    if spec is not None:  # python -m package.module
        return str(spec.name)
    path = Path(getattr(main, "__file__", None) or "")
    if path.suffix != ".py" or not path.stem.isidentifier():
        where = f"'{path.name}', which cannot be imported by that name" if path.name else "no file"
        raise UserError(f"the class {task.__name__} is in {where}; put it into a module such as digits.py")
    return path.stem


def _folders(module: str) -> tuple[str, ...]:
    """The folder that holds this module, unless every Python here finds it anyway."""
    top = module.partition(".")[0]
    main = Path(getattr(sys.modules["__main__"], "__file__", None) or "")
    if main.stem == top and main.is_file():
        return (str(main.resolve().parent),)
    try:
        found = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        found = None
    if found is None or not (found.origin or found.submodule_search_locations):
        raise UserError(f"there is no module '{top}' here; give the class itself, or run where its file is")
    packages = list(found.submodule_search_locations or ())
    folder = Path(packages[0]).parent if packages else Path(found.origin or "").parent
    installed = {Path(p).resolve() for p in (*site.getsitepackages(), site.getusersitepackages())}
    return () if folder.resolve() in installed else (str(folder.resolve()),)


# -- the pool ---------------------------------------------------------------------------------------------------


@contextmanager
def _client(
    spec: JobSpec,
    coordinator: str | Path | None,
    directory: str | Path | None,
    workers: int,
    places: tuple[str, ...],
) -> Iterator[OperatorClient]:
    """Whoever takes the job: a running coordinator, or a pool for as long as the block lasts."""
    from medley.jobs.home import home, operator

    if coordinator is not None:
        with operator(str(coordinator)) as client:
            yield client
        return
    from medley.runtimes.local import Pool

    place = Path(directory).expanduser() if directory else home() / "runs" / f"{spec.name}-{secrets.token_hex(3)}"
    before = os.environ.get("PYTHONPATH", "")
    paths = [*places, *([before] if before else [])]
    environment = {INSIDE: "1", **({"PYTHONPATH": os.pathsep.join(paths)} if paths else {})}
    with Pool(place, workers, 0, encrypt=spec.placement.encrypt, environment=environment) as pool:
        pool.wait_ready()
        yield pool.operator


def _unfinished(client: OperatorClient, spec: JobSpec) -> str:
    """The newest job with exactly these options that was interrupted, or ''."""
    from medley.jobs.listening import OVER

    found = ""
    for job in client.ask("jobs")["jobs"]:
        if job["state"] in OVER or job["name"] != spec.name:
            continue
        if msgspec.convert(client.ask("job", {"job": job["job"]})["spec"], JobSpec) == spec:
            found = job["job"]
    return found


def _followed(client: OperatorClient, job: str, hear: Callable[[Event], None]) -> dict[str, Any]:
    """The last answer about a job, once it is over; a coordinator that dies meanwhile is waited for."""
    from medley.jobs.listening import OVER, live, patiently

    answer = patiently(client, job)
    while answer["job"]["state"] not in OVER:
        for event in live(client, job):
            hear(event)
        answer = patiently(client, job)
    return answer


def _result(answer: dict[str, Any], spec: JobSpec, heard: list[Event], task: type[Task] | None) -> Result:
    job = answer["job"]
    # What happened before we listened, or while the coordinator was away, is in its history too.
    once = {(p["kind"], p["wall_ns"], p.get("version", 0)): p for p in heard if p["kind"] != "missed"}
    return Result(
        job=job["job"],
        state=job["state"],
        spec=spec,
        loss=job["loss"],
        heldout_first=job["heldout_first"],
        heldout_last=job["heldout_last"],
        accuracy=job["accuracy"],
        seconds=job["elapsed_s"],
        samples=job["samples"],
        path=Path(job["export"]) if job["export"] else None,
        history=tuple(sorted(once.values(), key=lambda p: p["wall_ns"])),
        _task=task,
    )
