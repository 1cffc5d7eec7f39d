"""Whether a job's values make sense, alone and together: ranges first, then one rule for each pair that clashes.

Promises: the first thing that is wrong becomes one UserError that names the key, its value and what would be right.
The command line asks before it submits, and the coordinator asks again of whatever reaches it. What only the data or
the network can tell (a missing column, a model too big for memory) is left to those who read them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from operator import attrgetter
from pathlib import Path

from medley.models.presets import is_preset, preset
from medley.protocol.conditions import network_problems
from medley.protocol.errors import UserError
from medley.protocol.spec import JobSpec

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_TASK = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
_INF = math.inf
_FILES = ("jsonl", "csv", "parquet")

# key, smallest, largest; "(" and ")" leave that end out.
_RANGES: tuple[tuple[str, str, float, float, str], ...] = (
    ("model.lora.rank", "[", 0, 1024, "]"),
    ("model.lora.alpha", "(", 0, 65536, "]"),
    ("model.lora.dropout", "[", 0, 1, ")"),
    ("model.vocab_size", "[", 262, 1 << 20, "]"),
    ("model.context_tokens", "[", 16, 1 << 20, "]"),
    ("data.heldout_fraction", "[", 0, 0.5, "]"),
    ("data.heldout_samples", "[", 0, 1 << 20, "]"),
    ("data.max_samples", "[", 0, _INF, ")"),
    ("train.epochs", "(", 0, 1_000_000, "]"),
    ("train.max_minutes", "[", 0, _INF, ")"),
    ("train.batch_samples", "[", 1, 1 << 20, "]"),
    ("train.micro_batch", "[", 0, 1 << 20, "]"),
    ("train.optimizer.lr", "(", 0, 1000, "]"),
    ("train.optimizer.eps", "(", 0, 1, "]"),
    ("train.optimizer.weight_decay", "[", 0, 10, "]"),
    ("train.optimizer.momentum", "[", 0, 1, ")"),
    ("train.optimizer.clip_norm", "[", 0, _INF, ")"),
    ("train.optimizer.warmup_fraction", "[", 0, 1, "]"),
    ("train.optimizer.min_lr_fraction", "[", 0, 1, "]"),
    ("train.optimizer.plateau_patience", "[", 1, 10000, "]"),
    ("train.outer.lr", "(", 0, 10, "]"),
    ("train.outer.momentum", "[", 0, 1, ")"),
    ("train.sync.local_steps", "[", 1, 100_000, "]"),
    ("train.sync.slots", "[", 0, 1024, "]"),
    ("train.sync.quorum", "(", 0, 1, "]"),
    ("train.sync.grace_mad", "[", 0, 1000, "]"),
    ("train.sync.backups", "[", 0, 1024, "]"),
    ("train.sync.staleness_bound", "[", 0, 100_000, "]"),
    ("train.sync.staleness_power", "[", 0, 10, "]"),
    ("train.sync.in_flight", "[", 1, 16, "]"),
    ("train.compression.density", "(", 0, 1, "]"),
    ("train.compression.decay", "[", 0, 1, "]"),
    ("train.seed", "[", 0, (1 << 63) - 1, "]"),
    ("train.threads", "[", 0, 1024, "]"),
    ("train.eval_every_commits", "[", 0, _INF, ")"),
    ("network.seed", "[", 0, (1 << 63) - 1, "]"),
    ("placement.shards", "[", 1, 64, "]"),
    ("placement.block_elements", "[", 1024, 1 << 28, "]"),
    ("checkpoint.every_s", "[", 0, _INF, ")"),
    ("checkpoint.every_commits", "[", 0, _INF, ")"),
    ("checkpoint.keep", "[", 1, 50, "]"),
    ("schedule.priority", "[", -100, 100, "]"),
    ("schedule.weight", "(", 0, 1000, "]"),
    ("schedule.workers_min", "[", 1, 100_000, "]"),
    ("schedule.workers_max", "[", 0, 100_000, "]"),
    ("schedule.memory_gib", "[", 0, 65536, "]"),
    ("schedule.deadline_minutes", "[", 0, _INF, ")"),
)


def check(spec: JobSpec) -> None:
    """Raises UserError, one sentence, for the first value that cannot work."""
    for key, opens, low, high, closes in _RANGES:
        value = attrgetter(key)(spec)
        if not _within(value, opens, low, high, closes):
            raise UserError(f"{key} is {value}, but must be {_range(opens, low, high, closes)}")
    for rule in _RULES:
        for sentence in rule(spec):
            raise UserError(sentence)


def _within(value: float, opens: str, low: float, high: float, closes: str) -> bool:
    # Written so that NaN, which compares false with everything, is outside.
    above = value > low if opens == "(" else value >= low
    below = value < high if closes == ")" else value <= high
    return above and below


def _range(opens: str, low: float, high: float, closes: str) -> str:
    least = f"above {low:g}" if opens == "(" else f"at least {_plain(low)}"
    if high == _INF:
        return least
    return f"{least} and {'below' if closes == ')' else 'at most'} {_plain(high)}"


def _plain(number: float) -> str:
    return str(number) if isinstance(number, int) else f"{number:g}"


def _name(spec: JobSpec) -> Iterator[str]:
    if not NAME.fullmatch(spec.name):
        yield (
            f"name is '{spec.name[:70]}', but must be 1 to 63 letters, digits, '.', '_' and '-', "
            "beginning with a letter or a digit"
        )


def _task(spec: JobSpec) -> Iterator[str]:
    if spec.task and not _TASK.fullmatch(spec.task):
        yield f"task is '{spec.task}', but must be 'module:Class', such as 'digits:Digits'"
    if spec.task and spec.data.source != "task":
        yield (
            f"data.source is '{spec.data.source}', but this job has a task, which brings its own data: "
            "set data.source to 'task', or leave task empty"
        )
    if not spec.task and spec.data.source == "task":
        yield "data.source is 'task', but task is empty: set task to 'module:Class', or choose another source"
    if spec.task_options and not spec.task:
        yield "task_options are given, but task is empty: set task to 'module:Class', or drop the options"
    for key, value in spec.task_options.items():
        # What travels is JSON, which has no other numbers.
        if isinstance(value, int | float) and not (math.isfinite(value) and abs(value) < 1 << 63):
            yield f"task_options.{key} must be a finite number of at most 63 bits"


def _data(spec: JobSpec) -> Iterator[str]:
    data = spec.data
    if data.source in (*_FILES, "hub") and not data.path:
        kind = "name of a data set on the hub" if data.source == "hub" else f"{data.source} file"
        yield f"data.path is empty, but data.source '{data.source}' needs the {kind}: set data.path"
    if data.path and data.source == "builtin":
        yield (
            f"data.path is '{data.path}', but data.source is 'builtin', which reads no file: "
            "set data.source to medquad, jsonl, csv, parquet or hub"
        )
    if data.source in _FILES and data.path:
        yield from _file(data.path, data.source)
    if data.source == "medquad" and data.path and not Path(data.path).expanduser().is_dir():
        yield (
            f"data.path '{data.path}' is no directory: give a clone of the MedQuAD repository, "
            "or leave it empty to download one"
        )
    for key, column in (("question", data.question), ("answer", data.answer)):
        if not column:
            yield f"data.{key} is empty, but must be the name of the field that holds the {key}"


def _file(text: str, source: str) -> Iterator[str]:
    path = Path(text).expanduser()
    if not path.exists():
        yield f"data.path '{text}' does not exist: give the {source} file, relative to the job file or absolute"
    elif not path.is_file():
        yield f"data.path '{text}' is a directory, but data.source '{source}' reads one file"
    elif path.stat().st_size == 0:
        yield f"data.path '{text}' is empty: it must hold at least one question with an answer"


def _model(spec: JobSpec) -> Iterator[str]:
    base, context = spec.model.base, spec.model.context_tokens
    if not base and not spec.task:
        yield "model.base is empty, but must be a preset such as 'llama-tiny', a directory, or a hub name"
    if is_preset(base) and context > preset(base).context_tokens:
        yield (
            f"model.context_tokens is {context}, but {base} has positions for {preset(base).context_tokens}: "
            "give at most that"
        )
    if spec.model.lora.targets and not spec.model.lora.rank:
        yield "model.lora.targets are given, but model.lora.rank is 0, which trains everything: set a rank from 8 to 64"


def _optimizer(spec: JobSpec) -> Iterator[str]:
    optimizer = spec.train.optimizer
    for number, beta in enumerate(optimizer.betas, start=1):
        if not 0 <= beta < 1:
            yield f"item {number} of train.optimizer.betas is {beta}, but must be at least 0 and below 1"
    if optimizer.momentum and optimizer.kind != "sgd":
        yield (
            f"train.optimizer.momentum is {optimizer.momentum:g}, but {optimizer.kind} has none: "
            "set train.optimizer.kind to 'sgd', or drop the momentum (adamw has betas)"
        )
    if optimizer.schedule == "plateau" and not spec.train.eval_every_commits:
        yield (
            "train.optimizer.schedule is 'plateau', which needs evaluations, but train.eval_every_commits is 0: "
            "set it to 20, for instance"
        )
    if optimizer.schedule == "plateau" and not spec.data.heldout_fraction and not spec.task:
        yield (
            "train.optimizer.schedule is 'plateau', which needs held-out examples, but data.heldout_fraction is 0: "
            "set it to 0.05, for instance"
        )


def _modes(spec: JobSpec) -> Iterator[str]:
    sync = spec.train.sync
    if sync.local_steps > 1 and sync.mode != "local-sgd":
        yield (
            f"train.sync.local_steps is {sync.local_steps}, but mode '{sync.mode}' sends each step's gradient: "
            "set train.sync.mode to 'local-sgd', or local_steps to 1"
        )
    if sync.backups and sync.mode != "sync":
        yield (
            f"train.sync.backups is {sync.backups}, but mode '{sync.mode}' has no rounds that wait for a lease: "
            "set train.sync.mode to 'sync', or backups to 0"
        )
    if sync.staleness_adaptive and sync.mode != "async":
        yield (
            f"train.sync.staleness_adaptive is true, but mode '{sync.mode}' has no staleness bound: "
            "set train.sync.mode to 'async', or staleness_adaptive to false"
        )


def _schedule(spec: JobSpec) -> Iterator[str]:
    own = spec.schedule
    if own.queue and not NAME.fullmatch(own.queue):
        yield f"schedule.queue is '{own.queue[:70]}', but must be 1 to 63 letters, digits, '.', '_' and '-'"
    if 0 < own.workers_max < own.workers_min:
        yield (
            f"schedule.workers_max is {own.workers_max}, but the job begins with workers_min, {own.workers_min}: "
            "raise the one or lower the other"
        )
    if 0 < own.workers_max < spec.placement.replication and spec.placement.replication == 2:
        yield (
            "schedule.workers_max is 1, but placement.replication is 2, which needs two machines: "
            "raise the one or lower the other"
        )


def _deterministic(spec: JobSpec) -> Iterator[str]:
    train = spec.train
    if not train.deterministic:
        return
    if train.sync.mode != "sync":
        yield (
            f"train.deterministic is true, but in mode '{train.sync.mode}' the order of arrival decides: "
            "set train.sync.mode to 'sync'"
        )
    if train.compression.kind != "none":
        yield (
            f"train.deterministic is true, but compression '{train.compression.kind}' keeps a residual in each worker, "
            "so who computes what would matter: set train.compression.kind to 'none'"
        )
    if train.sync.slots < 1:
        yield (
            "train.deterministic is true, but train.sync.slots is 0, so a round's size would follow the number of "
            "workers: set it to 4, for instance"
        )
    if train.max_minutes:
        yield (
            f"train.deterministic is true, but train.max_minutes is {train.max_minutes:g}, so the machines' speed "
            "would decide where it ends: set train.epochs, and max_minutes to 0"
        )
    if spec.model.dtype == "auto":
        yield (
            "train.deterministic is true, but model.dtype is 'auto', which each machine decides for itself: "
            "set model.dtype to 'fp32' or 'bf16'"
        )


def _network(spec: JobSpec) -> Iterator[str]:
    yield from network_problems(spec.network)


_RULES: tuple[Callable[[JobSpec], Iterator[str]], ...] = (
    _name,
    _task,
    _data,
    _model,
    _optimizer,
    _modes,
    _deterministic,
    _schedule,
    _network,
)
