"""One-shot work on the coordinator's machine: prepare a job before it runs, export what it learned afterwards.

Preparing is repeatable: the same job gives the same artifacts and the same checkpoint 0, so a crash in between
costs only time.
"""

from __future__ import annotations

import asyncio
import tempfile
import traceback
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from medley.engines.parts import join_parts, write_blocks
from medley.engines.task import Task, load_task
from medley.engines.train import TrainEngine
from medley.models.dtype import choose_dtype
from medley.policies.bounds import ADAPTERS, refusal
from medley.policies.placement import assign_blocks
from medley.protocol.codec import parse, text
from medley.protocol.engine import Command, Exported, ExportJob, Failed, JobPrepared, PrepareJob, Report
from medley.protocol.errors import MedleyError, UserError
from medley.protocol.layout import Layout
from medley.protocol.messages import Artifact
from medley.protocol.plan import Plan
from medley.protocol.spec import JobSpec
from medley.protocol.version import __version__
from medley.protocol.wire import MAX_DOCUMENT_NBYTES
from medley.runtimes.children.task import open_language_task
from medley.runtimes.clock import SystemClock
from medley.runtimes.pipe import ChildLink
from medley.store.artifacts import ArtifactStore
from medley.store.checkpoints import CheckpointStore, Manifest, Part
from medley.store.errors import is_full


def prepare_job(command: PrepareJob) -> JobPrepared:
    """Artifacts, checkpoint 0 and the plan. Raises UserError for what a person can mend."""
    spec = parse(command.spec, JobSpec)
    root = Path(command.root)
    with tempfile.TemporaryDirectory(prefix="medley-prepare-", dir=root) as folder:
        task, artifacts = _task(spec, Path(folder), ArtifactStore(root / "artifacts"))
        task.check_memory()
        engine = TrainEngine(task, spec.train, spec.placement, choose_dtype("fp32"), SystemClock().now_ns)
        plan = _plan(spec, task, engine, artifacts)
        _write_first_checkpoint(spec, command.job, engine, root, Path(folder))
    return JobPrepared(command.job, plan)


def _plan(spec: JobSpec, task: Task, engine: TrainEngine, artifacts: tuple[Artifact, ...]) -> str:
    """What every machine is sent, as JSON. Raises UserError for parameters that would not fit through the limits."""
    broken = refusal(engine.layout, spec.placement.block_elements, spec.placement.shards)
    if broken:
        raise UserError(broken)
    heldout = task.heldout()
    plan = text(
        Plan(
            spec=spec,
            samples=len(task.dataset()),
            heldout=len(heldout) if heldout is not None else 0,
            tensors=engine.layout.tensors,
            artifacts=artifacts,
        )
    )
    if len(plan.encode()) > MAX_DOCUMENT_NBYTES:
        count = len(engine.layout.tensors)
        raise UserError(f"the model has {count} trainable tensors, too many to describe: set {ADAPTERS}")
    return plan


def _task(spec: JobSpec, folder: Path, store: ArtifactStore) -> tuple[Task, tuple[Artifact, ...]]:
    if spec.task:
        return load_task(spec.task, spec.task_options, allow_code=True), ()
    from medley.data.prepare import prepare
    from medley.engines.causal_lm import prepare_tokenizer

    prepared = prepare(spec.data, spec.train.seed, folder / "data")
    prepare_tokenizer(spec, prepared, folder / "tokenizer")
    artifacts = tuple(Artifact(name, store.put_directory(folder / name).digest) for name in ("data", "tokenizer"))
    return open_language_task(spec, folder / "data", folder / "tokenizer", exact=True), artifacts


def _write_first_checkpoint(spec: JobSpec, job: str, engine: TrainEngine, root: Path, folder: Path) -> None:
    """The seeded or pretrained parameters, cut as the shards will own them."""
    store = CheckpointStore(root / "checkpoints")
    owned = assign_blocks(engine.layout.blocks, dict.fromkeys(range(spec.placement.shards), 1.0))
    parts = []
    for shard, indices in owned.items():
        path = folder / f"part-{shard}"
        write_blocks(path, engine.layout, engine.initial(), indices)
        parts.append(store.write_part(job, 0, str(shard), path))
    store.seal(job, _first_manifest(job, engine.layout, tuple(parts)))


def _first_manifest(job: str, layout: Layout, parts: tuple[Part, ...]) -> Manifest:
    return Manifest(
        job=job,
        version=0,
        generation=0,
        layout=layout.fingerprint,
        parts=parts,
        ledger="[]",
        step=0,
        created_ns=SystemClock().wall_ns(),
        medley=__version__,
    )


def export_job(command: ExportJob) -> Exported:
    """A checkpoint as a directory that plain transformers (and PEFT) load; a person's task writes its own."""
    plan = parse(command.plan, Plan)
    root = Path(command.root)
    target = root / "exports" / command.job
    with tempfile.TemporaryDirectory(prefix="medley-export-", dir=root) as folder:
        task = _stored_task(plan, Path(folder), ArtifactStore(root / "artifacts"))
        engine = TrainEngine(task, plan.spec.train, plan.spec.placement, choose_dtype("fp32"), SystemClock().now_ns)
        fresh = Path(folder) / "export"
        engine.save(fresh, read_checkpoint(root, command.job, command.version, plan.layout()))
        target.parent.mkdir(parents=True, exist_ok=True)
        put_in_place(fresh, target, Path(folder) / "before")
    return Exported(command.job, command.version, str(target))


def put_in_place(fresh: Path, target: Path, before: Path) -> None:
    """Two renames: whoever reads finds the old export or the new one, and for an instant none, but never a mixture."""
    if target.exists():
        target.rename(before)
    fresh.rename(target)


def _stored_task(plan: Plan, folder: Path, store: ArtifactStore) -> Task:
    if plan.spec.task:
        return load_task(plan.spec.task, plan.spec.task_options, allow_code=True)
    for artifact in plan.artifacts:
        store.restore(artifact.digest, folder / artifact.name)
    return open_language_task(plan.spec, folder / "data", folder / "tokenizer", exact=True)


def read_checkpoint(root: Path, job: str, version: int, layout: Layout) -> Any:
    """The flat fp32 vector [numel] of one checkpoint. Raises Damaged."""
    store = CheckpointStore(root / "checkpoints")
    manifest = store.manifest(job, version)
    with ExitStack() as open_parts:
        paths = [open_parts.enter_context(store.open_part(manifest, part.shard)) for part in manifest.parts]
        return join_parts(layout, paths)


def _execute(command: Command) -> Report:
    match command:
        case PrepareJob(job):
            what = "prepare"
        case ExportJob(job):
            what = "export"
        case _:
            raise AssertionError(f"not a command for a preparer: {command}")
    try:
        return prepare_job(command) if isinstance(command, PrepareJob) else export_job(command)
    except (MedleyError, OSError) as error:
        return Failed(what, job, _full(command.root) if is_full(error) else str(error), False, True)
    except Exception as error:  # a person's task may raise anything, and would raise it again
        traceback.print_exc()
        return Failed(what, job, f"could not {what} it: {type(error).__name__}: {error}", False, True)


def _full(root: str) -> str:
    return f"the disk that holds {root} is full: make room there, or set MEDLEY_HOME to a directory on another disk"


async def serve() -> None:
    link = ChildLink()
    link.send(await asyncio.to_thread(_execute, await link.commands.get()))
    await link.commands.get()  # the parent ends us once it has heard
