"""Hunts the planted bugs: `python -m tests.simulation.bugs.hunt [--seeds 2000] [--jobs 2] [NAME ...]`.

Each bug gets a process, which runs seeds until an invariant breaks. What was found is kept in `found.json`, which the
tests read: the first seed that finds the bug, the invariant that broke, and what was seen.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from tests.simulation.bugs.catalogue import BUGS

TABLE = Path(__file__).with_name("found.json")
ROOT = Path(__file__).parents[3]
SEEDS = 2000


def hunt(name: str, first: int, count: int) -> dict[str, Any] | None:
    """What the first of these seeds that notices the bug says; None if none does."""
    command = [sys.executable, "-m", "tests.simulation.bugs.one", name, str(first), str(count)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise AssertionError(f"{name}: {done.stderr[-2000:]}")
    found: dict[str, Any] | None = json.loads(done.stdout)
    return found


def table() -> dict[str, dict[str, Any]]:
    """What was found, by the names of the bugs."""
    found: dict[str, dict[str, Any]] = json.loads(TABLE.read_text(encoding="utf-8"))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=list(BUGS))
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    found = table() if TABLE.exists() else {}
    waiting: SimpleQueue[str] = SimpleQueue()
    for name in options.names:
        waiting.put(name)
    lock = threading.Lock()

    def work() -> None:
        while True:
            try:
                name = waiting.get_nowait()
            except Empty:
                return
            try:
                told = hunt(name, options.first, options.seeds)
            except AssertionError as error:
                print(error, flush=True)
                continue
            with lock:
                print(f"{name}: {told}", flush=True)
                if told is not None:
                    found[name] = told
                    TABLE.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", encoding="utf-8")

    threads = [threading.Thread(target=work) for _ in range(options.jobs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    missing = [name for name in BUGS if name not in found]
    print(f"{len(BUGS) - len(missing)} of {len(BUGS)} bugs are found; not found: {missing}")


if __name__ == "__main__":
    main()
