"""How long a stable matching of 10,000 tasks and 1,000 machines takes, and whether it is what a textbook would find.

    python bench/matching.py

One JSON line. The textbook implementation (one free task after the other, Gale and Shapley 1962) runs on scores of the
same kind at a tenth of the size, where both must agree in every pair; it is also timed there, for comparison.
"""

from __future__ import annotations

import heapq
import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from medley.policies.scheduling.matching import Scores, deferred_acceptance

TASKS, MACHINES = 10_000, 1_000


def market(tasks: int, machines: int, seed: int) -> tuple[Scores, Scores, np.ndarray]:
    """Half of what a side wants is common to all, so that there is competition; just enough places for all."""
    rng = np.random.default_rng(seed)
    wishes = rng.random((tasks, machines), np.float32) + rng.random(machines, np.float32)[None, :]
    favours = rng.random((tasks, machines), np.float32) + rng.random(tasks, np.float32)[:, None]
    return wishes, favours, np.full(machines, -(-tasks // machines))


def textbook(wishes: Scores, favours: Scores, capacity: np.ndarray) -> list[int]:
    tasks, machines = wishes.shape
    order = [np.argsort(-row, kind="stable").tolist() for row in wishes]
    following = [0] * tasks
    held: list[list[tuple[float, int]]] = [[] for _ in range(machines)]
    free = list(range(tasks))
    while free:
        task = free.pop()
        if following[task] == machines:
            continue
        machine = order[task][following[task]]
        following[task] += 1
        heapq.heappush(held[machine], (float(favours[task, machine]), -task))
        if len(held[machine]) > capacity[machine]:
            free.append(-heapq.heappop(held[machine])[1])
    matched = [-1] * tasks
    for machine, found in enumerate(held):
        for _, task in found:
            matched[-task] = machine
    return matched


def timed(call: Callable[..., Any], *args: object) -> tuple[float, float, Any]:
    """Seconds by the wall, seconds of this process, and what it returned."""
    wall, own = time.perf_counter(), time.process_time()
    found = call(*args)
    return time.perf_counter() - wall, time.process_time() - own, found


def main() -> None:
    small = market(TASKS // 10, MACHINES // 10, 1)
    _, small_s, ours = timed(deferred_acceptance, *small)
    _, textbook_s, theirs = timed(textbook, *small)
    wall_s, own_s, matched = timed(deferred_acceptance, *market(TASKS, MACHINES, 2))
    figures = {
        "tasks": TASKS,
        "machines": MACHINES,
        "seconds": round(wall_s, 3),
        "cpu_seconds": round(own_s, 3),
        "target_s": 1.0,
        "matched": int((matched >= 0).sum()),
        "small": {"tasks": TASKS // 10, "machines": MACHINES // 10, "cpu_seconds": round(small_s, 3)},
        "textbook_cpu_seconds_small": round(textbook_s, 3),
        "equal": ours.tolist() == theirs,
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
