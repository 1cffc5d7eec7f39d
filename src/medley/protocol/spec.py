"""What a job is: one frozen tree of options, each with its unit, its default, and when to change it.

A job file (YAML or JSON) has exactly these keys. Unknown keys and wrong types are refused by `medley.jobs.load`
with the nearest right word. Everything here is plain data, so it travels in the submission, in the event log and to
every engine unchanged.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from medley.protocol.conditions import Network

MODES = ("sync", "async", "local-sgd")


@dataclass(frozen=True, slots=True)
class Lora:
    """Low-rank adapters (PEFT). rank 0 trains all parameters; 8-64 trains adapters only."""

    rank: int = 0
    alpha: float = 32.0
    dropout: float = 0.0
    targets: tuple[str, ...] = ()  # module names; empty means every linear layer of the blocks
    rslora: bool = False  # scale alpha / sqrt(rank); use it for rank >= 64


@dataclass(frozen=True, slots=True)
class Model:
    """Which network. `base` is a preset (llama-tiny ... tinyllama-1.1b), a Hugging Face directory, or a hub name."""

    base: str = "llama-tiny"
    dtype: Literal["auto", "fp32", "bf16"] = "auto"  # auto: bf16 where the processor computes it, else fp32
    lora: Lora = field(default_factory=Lora)
    vocab_size: int = 4096  # of the tokenizer trained for a preset; ignored where the model brings its own
    context_tokens: int = 256  # longest sequence trained, packed examples included
    gradient_checkpointing: bool = False  # less memory for about a fifth more time


@dataclass(frozen=True, slots=True)
class Data:
    """Which questions and answers. `source` task: a person's own Task brings them."""

    source: Literal["builtin", "medquad", "jsonl", "csv", "parquet", "hub", "task"] = "builtin"
    path: str = ""  # file, directory or hub name; medquad: a clone of the public repository, empty downloads it
    question: str = "question"  # column names
    answer: str = "answer"
    group: str = "group"  # rows of one group stay on one side of the split; missing: the question's own text
    heldout_fraction: float = 0.05  # of the groups
    heldout_samples: int = 64  # at most so many are evaluated each time
    template: str = "auto"  # auto: the tokenizer's chat template where it has one, else "Question: ...\nAnswer: ..."
    max_samples: int = 0  # 0: all
    packing: bool = True  # False pads each example to the longest of its micro-batch


@dataclass(frozen=True, slots=True)
class Optimizer:
    """The optimiser that makes the steps: on the shards when local_steps is 1, in the worker otherwise."""

    kind: Literal["adamw", "sgd"] = "adamw"
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.01
    momentum: float = 0.0  # sgd only
    clip_norm: float = 1.0  # of each worker's mean gradient; 0 switches clipping off
    schedule: Literal["cosine", "linear", "constant", "plateau"] = "cosine"
    warmup_fraction: float = 0.03  # of the planned steps
    min_lr_fraction: float = 0.1  # where cosine and linear end
    plateau_patience: int = 3  # evaluations without improvement before the rate is halved


@dataclass(frozen=True, slots=True)
class Outer:
    """How shards merge pseudo-gradients in local-sgd: none adds their mean, sgd scales it, nesterov is DiLoCo."""

    kind: Literal["none", "sgd", "nesterov"] = "sgd"
    lr: float = 1.0
    momentum: float = 0.9  # nesterov only; hurts with LoRA or sparse updates (use sgd there)


@dataclass(frozen=True, slots=True)
class Sync:
    """Who is merged, how stale, how long to wait."""

    mode: Literal["sync", "async", "local-sgd"] = "sync"
    local_steps: int = 1  # H: optimiser steps between two updates; local-sgd wants 8-500
    slots: int = 0  # leases in a round; 0: one for each worker that is there
    quorum: float = 0.75  # fraction of a round's slots that may commit once the grace is over
    backups: int = 0  # sync: so many leases of a round that are late are computed by somebody idle as well
    grace_mad: float = 6.0  # grace = median + this many median absolute deviations of recent arrivals
    staleness_bound: int = 4  # async: updates older than this many commits are refused (and carried)
    staleness_adaptive: bool = False  # async: bound / relative speed of the worker, within [1, 4 x bound]
    staleness_power: float = 0.5  # async: the step is scaled by (1 + s) ** -power
    in_flight: int = 2  # updates of one worker at once in async and local-sgd; hides the round trip of a commit


@dataclass(frozen=True, slots=True)
class Compression:
    """Of updates on their way to the shards, with error feedback in the worker."""

    kind: Literal["none", "fp16", "int8", "topk"] = "none"
    density: float = 0.015625  # topk: kept fraction of each chunk of 4096
    decay: float = 1.0  # of the residual each update; 0.95 with long local phases
    feedback: bool = True


@dataclass(frozen=True, slots=True)
class Train:
    """How much, how fast, how safely."""

    epochs: float = 1.0
    max_minutes: float = 0.0  # stop (and save) after so many minutes of training; 0: no limit
    batch_samples: int = 32  # samples of one lease and one optimiser step of one worker
    micro_batch: int = 0  # sequences computed at once; 0: chosen, and halved whenever memory runs out
    optimizer: Optimizer = field(default_factory=Optimizer)
    outer: Outer = field(default_factory=Outer)
    sync: Sync = field(default_factory=Sync)
    compression: Compression = field(default_factory=Compression)
    aggregation: Literal["mean", "sum"] = "mean"  # mean is weighted by answer tokens
    deterministic: bool = False  # bit-identical runs: all slots, sums in slot order, fixed threads
    seed: int = 0
    threads: int = 0  # torch threads of each engine; 0: cores / engines on the machine
    eval_every_commits: int = 20  # 0: only at the end


@dataclass(frozen=True, slots=True)
class Placement:
    """Where parameters live."""

    shards: int = 1
    replication: Literal[1, 2] = 1
    block_elements: int = 1_048_576
    encrypt: bool = True  # CURVE on the tensor plane; the fleet always encrypts


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """How often parameters and ledger are made durable together, and how many are kept."""

    every_s: float = 30.0
    every_commits: int = 0  # 0: by time only
    keep: int = 2


@dataclass(frozen=True, slots=True)
class Schedule:
    """What a job asks of the pool's scheduler, and bears. `fifo` heeds all but priority, weight and deadline."""

    priority: int = 0  # higher goes first; a job that waits rises by one a minute
    weight: float = 1.0  # its share beside jobs of the same priority
    queue: str = ""  # jobs of one queue share one quota (see `medley up --quota`)
    workers_min: int = 1  # it begins with so many machines or not at all
    workers_max: int = 0  # 0: all that there are
    memory_gib: float = 0.0  # that each machine must have; 0: any will do
    preemptible: bool = True  # False: nothing is taken from it once it runs
    deadline_minutes: float = 0.0  # after submission; the nearer, the more urgent; 0: none


@dataclass(frozen=True, slots=True)
class JobSpec:
    """A training job."""

    name: str = "job"
    task: str = ""  # "module:Class" of a person's own Task; empty: a causal language model
    task_options: dict[str, int | float | str | bool] = field(default_factory=dict)
    model: Model = field(default_factory=Model)
    data: Data = field(default_factory=Data)
    train: Train = field(default_factory=Train)
    placement: Placement = field(default_factory=Placement)
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    schedule: Schedule = field(default_factory=Schedule)
    network: Network = field(default_factory=Network)
