"""The planner: how long it thinks, and what its plans gain by its own cost model. No model is loaded; only the
planner's time is measured.

`plan_ms`: median for fleets of several sizes. `one_machine`: a 4:1:1 fleet where splitting hurts one stream.
`gain_by_model`: of the plan over layers in proportion to memory, two machines of equal memory whose speeds are 4:1.
One line of JSON:

    python bench/planner.py [--rounds 9] [--out FILE]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

from medley.policies.pipeline.describe import Link, Links, Machine, ModelShape, Times, Wanted, layout_of
from medley.policies.pipeline.ground import ground
from medley.policies.pipeline.planner import plan
from medley.policies.pipeline.predict import predict

GIB = 1 << 30
TINYLLAMA = ModelShape("tinyllama-1.1b", 22, 88_096_768, 131_072_000, 131_076_096, 1024, 4096)
SEVENTY = ModelShape("llama-70b", 80, 1_711_308_800, 2_101_346_304, 2_101_362_688, 4096, 16384)
LAN = Links(Link(0.0003, 110e6))


def machine(name: str, layer_ms: float, gib: float) -> Machine:
    def times(ms: float) -> Times:
        return Times(ms / 1e3, 1.6 * ms / 1e3, 20 * ms / 1e3)

    return Machine(name, int(gib * GIB), times(layer_ms), times(1.5 * layer_ms))


def mixed(count: int) -> list[Machine]:
    """Some hold a TinyLlama alone, some a few layers of it; speeds differ by seven."""
    return [machine(f"m{i}", 2.0 * (1 + i * 5 % 7), (1.2, 2.5, 5.0, 1.6)[i % 4]) for i in range(count)]


def plan_ms(model: ModelShape, fleet: list[Machine], wanted: Wanted, rounds: int) -> float:
    seen = []
    for _ in range(rounds):
        began = time.perf_counter()
        plan(model, fleet, LAN, wanted)
        seen.append((time.perf_counter() - began) * 1e3)
    return round(statistics.median(seen), 1)


def thinking(rounds: int) -> dict[str, float]:
    figures = {}
    for objective in ("latency", "throughput"):
        for count in (2, 4, 6, 8, 16, 32):
            wanted = Wanted(objective, kv_tokens=4096)  # type: ignore[arg-type]
            figures[f"{objective}_{count}"] = plan_ms(TINYLLAMA, mixed(count), wanted, rounds)
        big = [machine(f"m{i}", 2.0 * (1 + i * 5 % 7), (6, 12, 24)[i % 3]) for i in range(32)]
        figures[f"{objective}_32_of_80_layers"] = plan_ms(SEVENTY, big, Wanted(objective), rounds)  # type: ignore[arg-type]
    return figures


def hurting() -> dict[str, Any]:
    fleet = [machine("fast", 10, 16), machine("slow-1", 40, 16), machine("slow-2", 40, 16)]
    made = plan(TINYLLAMA, fleet, LAN, Wanted()).plan
    assert made is not None
    split = next(one for one in made.alternatives if one.kind == "split")
    return {
        "kind": made.layout.kind,
        "machines": list(made.layout.machines),
        "tokens_per_s": round(made.prediction.stream_tokens_per_s, 2),
        "best_split_tokens_per_s": round(split.value, 2),
    }


def skewed() -> dict[str, Any]:
    fleet = [machine("fast", 10, 2.4), machine("slow", 40, 2.4)]
    wanted = Wanted("throughput", kv_tokens=2048)
    made = plan(TINYLLAMA, fleet, LAN, wanted).plan
    assert made is not None
    by_memory = predict(ground(TINYLLAMA, fleet, LAN, wanted), layout_of(((("fast", 11), ("slow", 11)),)))
    return {
        "ratio": round(made.prediction.tokens_per_s / by_memory.tokens_per_s, 3),
        "layers": {stage.machine: stage.layers for one in made.layout.replicas for stage in one},
        "tokens_per_s": round(made.prediction.tokens_per_s, 2),
        "by_memory_tokens_per_s": round(by_memory.tokens_per_s, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="The planner's time, and its plans by its own cost model.")
    parser.add_argument("--rounds", type=int, default=9, help="plans whose median counts (default 9)")
    parser.add_argument("--out", help="also write the line to this file")
    options = parser.parse_args()
    figure = {
        "figure": "planner",
        "plan_ms": thinking(options.rounds),
        "one_machine": hurting(),
        "gain_by_model": skewed(),
    }
    line = json.dumps(figure)
    print(line)
    if options.out:
        Path(options.out).write_text(line + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
