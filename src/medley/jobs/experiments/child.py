"""A process that runs what it is told: one JSON line in for each run, JSON lines out about it.

In: {"folder", "key", "repeat", "data"}. Out: {"at_s"} now and then, {"key"} when the result is written. Ends with
its stdin. Whatever goes wrong ends it with a traceback, which its parent reads.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from medley.jobs.experiments import runs


def main() -> None:
    for line in sys.stdin:
        _serve(json.loads(line))


def _serve(order: dict[str, Any]) -> None:
    row, curves = runs.run(order["data"], order["repeat"], lambda at_s: _say({"at_s": at_s}))
    runs.save(Path(order["folder"]), order["key"], row, curves)
    _say({"key": order["key"]})


def _say(words: dict[str, Any]) -> None:
    print(json.dumps(words), flush=True)


if __name__ == "__main__":
    main()
