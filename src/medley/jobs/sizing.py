"""How large a job is before it runs: parameters, examples, tokens. For reckoning ahead, so tokens are estimated.

Reads the job's own data where that is on this machine; downloads nothing. Raises UserError where it cannot know.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from medley.models.presets import is_preset, parameters, preset
from medley.protocol.errors import UserError
from medley.protocol.spec import JobSpec
from medley.runtimes.simulated.setup import Workload

if TYPE_CHECKING:
    from medley.data.examples import Example

CHARACTERS_PER_TOKEN = 4.0  # of English, with a vocabulary of some thousands
TEMPLATE_TOKENS = 8
UNKNOWN_TOKENS = 192  # of an example, where nobody can read one


@dataclass(frozen=True, slots=True)
class Sized:
    """`assumed` are sentences about what was not known."""

    workload: Workload
    assumed: tuple[str, ...] = ()


def size_job(spec: JobSpec, samples: int = 0) -> Sized:
    """What `spec` trains on how much; `samples` of one epoch, where it is given, instead of counting them."""
    if spec.task:
        return _of_task(spec, samples)
    trained, frozen = model_size(spec)
    if samples:
        tokens = min(spec.model.context_tokens, UNKNOWN_TOKENS)
        return Sized(
            Workload(samples, min(spec.data.heldout_samples, samples), trained, frozen, tokens),
            (f"{tokens} tokens an example",),
        )
    train, heldout = _examples(spec)
    longest = spec.model.context_tokens
    tokens = round(sum(_tokens(e, longest) for e in train) / len(train))
    workload = Workload(len(train), min(spec.data.heldout_samples, heldout), trained, frozen, tokens)
    return Sized(workload, (f"{tokens} tokens an example, at {CHARACTERS_PER_TOKEN:g} characters each",))


def model_size(spec: JobSpec) -> tuple[int, int]:
    """(trained, frozen) parameters of the job's language model."""
    model = spec.model
    if is_preset(model.base) and not model.lora.rank:
        return parameters(preset(model.base), model.vocab_size), 0
    if not is_preset(model.base) and not Path(model.base).is_dir():
        raise UserError(
            f"model.base '{model.base}' is not on this machine, so its size is unknown: "
            "give a preset, or the directory of a model that was downloaded"
        )
    from medley.models.count import count_parameters  # torch

    return count_parameters(model)


def _tokens(example: Example, longest: int) -> float:
    characters = len(example.question) + len(example.answer)
    return min(longest, characters / CHARACTERS_PER_TOKEN + TEMPLATE_TOKENS)


def _examples(spec: JobSpec) -> tuple[list[Example], int]:
    """(training examples, how many are measured)."""
    from medley.data.corpus import load_checks, load_pairs
    from medley.data.sources import read
    from medley.data.split import split

    data = spec.data
    if data.source == "hub" or (data.source == "medquad" and not data.path):
        raise UserError(
            f"data.source '{data.source}' would be downloaded to count its examples: "
            "give data.path of a local copy, or --samples"
        )
    focus = {pair.id: pair.focus.lower() for pair in load_pairs()}
    checks = load_checks() if data.source == "builtin" else ()
    keep = {focus[check.pair_id] for check in checks}
    train, heldout = split(read(data), data.heldout_fraction, spec.train.seed, keep=keep)
    return train, len(checks) or len(heldout)


def _of_task(spec: JobSpec, samples: int) -> Sized:
    """A person's own task is asked itself: it is their command, on their machine."""
    from medley.engines.task import load_task

    task = load_task(spec.task, spec.task_options, allow_code=True)
    trained = frozen = 0
    for one in task.model().parameters():
        trained, frozen = (trained + one.numel(), frozen) if one.requires_grad else (trained, frozen + one.numel())
    heldout = task.heldout()
    exam = 0 if heldout is None else min(len(heldout), spec.data.heldout_samples)
    workload = Workload(samples or len(task.dataset()), exam, trained, frozen, 1)
    return Sized(workload, ("6 FLOP for each parameter and sample, which convolutions and recurrences exceed",))
