"""Build the task of a plan on this machine: data and tokenizer from the vault, or a person's own code where allowed."""

from __future__ import annotations

import asyncio
from pathlib import Path

from medley.engines.task import Task, load_task
from medley.protocol.messages import Address
from medley.protocol.plan import Plan
from medley.protocol.spec import JobSpec
from medley.runtimes.children.environment import room
from medley.runtimes.children.plane import fetch_directory
from medley.store.artifacts import ArtifactStore
from medley.transports.tensors.plane import TensorPlane


async def build_task(plan: Plan, job: str, plane: TensorPlane, vault: Address, allow_code: bool) -> Task:
    """The task, ready for a TrainEngine. Raises UserError, Damaged, Unavailable."""
    if plan.spec.task:
        return await asyncio.to_thread(load_task, plan.spec.task, plan.spec.task_options, allow_code)
    cache = ArtifactStore(room() / "artifacts")
    places: dict[str, Path] = {}
    for artifact in plan.artifacts:
        places[artifact.name] = room() / "trees" / artifact.digest
        if not places[artifact.name].exists():
            await fetch_directory(plane, vault, job, artifact.digest, cache, places[artifact.name])
    return await asyncio.to_thread(open_language_task, plan.spec, places["data"], places["tokenizer"])


def open_language_task(spec: JobSpec, data: Path, tokenizer: Path, *, exact: bool = False) -> Task:
    """The causal language model task of prepared directories; `exact` computes in fp32 whatever the job says."""
    from medley.engines.causal_lm import open_causal_lm
    from medley.models.dtype import choose_dtype

    return open_causal_lm(spec, data, tokenizer, choose_dtype("fp32" if exact else spec.model.dtype))
