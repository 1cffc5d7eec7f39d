"""One run: its name, what is kept of it, and the world it happens in.

A run's name is a digest of everything it depends on (the point's data, the repeat, this program's version), so a
finished run is known again by its file, and a changed experiment runs anew.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medley.jobs.experiments.load import NOT_SWEPT, Data, Loaded, load_data
from medley.protocol.errors import Damaged
from medley.protocol.version import __version__

FORMAT = 2  # of the files below `runs`; another number runs everything anew
MAX_FILE_NBYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Task:
    """One repeat of one point."""

    key: str
    point: int  # its place in the sweep
    repeat: int
    labels: dict[str, str]
    data: Data


@dataclass(frozen=True, slots=True)
class Result:
    task: Task
    row: dict[str, Any]  # by COLUMNS
    curves: dict[str, Any]  # as `tally.Curves.plain`


def tasks_of(loaded: Loaded) -> list[Task]:
    """All runs, repeat by repeat, so that an interrupted sweep has every point before any has its second."""
    return [
        Task(_key(_own(point.data), repeat), number, repeat, point.labels, _own(point.data))
        for repeat in range(loaded.experiment.repeats)
        for number, point in enumerate(loaded.points)
    ]


def _own(data: Data) -> Data:
    """What one run depends on, of a point's data."""
    return {key: value for key, value in data.items() if key not in NOT_SWEPT}


def _key(data: Data, repeat: int) -> str:
    text = json.dumps([FORMAT, __version__, data, repeat], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def seed_of(seed: int, repeat: int) -> int:
    """The world's seed: another for each repeat, the same for each point."""
    return int.from_bytes(hashlib.blake2b(f"{seed}/{repeat}".encode(), digest_size=6).digest(), "big")


def path_of(folder: Path, key: str) -> Path:
    return folder / "runs" / f"{key}.json"


def save(folder: Path, key: str, row: dict[str, Any], curves: dict[str, Any]) -> None:
    """All of it or nothing: a file that exists is whole."""
    path = path_of(folder, key)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        draft.write_text(json.dumps({"row": row, "curves": curves}), encoding="utf-8")
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)  # half of one, where the disk is full


def load(folder: Path, task: Task) -> Result | None:
    """The kept result of a run; None when it has none. Raises Damaged for a file that somebody changed."""
    path = path_of(folder, task.key)
    if not path.is_file() or path.stat().st_size > MAX_FILE_NBYTES:
        return None
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        return Result(task, kept["row"], kept["curves"])
    except (ValueError, KeyError, TypeError) as error:
        raise Damaged(f"{path} is not what a run writes; delete it, and the run is done again") from error


def run(data: Data, repeat: int, progress: Callable[[float], None]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Row and curves of one run; `progress` hears the virtual second that the world has reached."""
    from medley.jobs.experiments.world import simulate

    experiment = load_data(data, "the point").points[0].experiment
    return simulate(experiment, repeat, progress)
