"""The watchdog's process for a local pool: `python -m medley.cli.process_up OPTIONS.json`.

Its first line on standard output is JSON: where the coordinator listens, or the problem.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

from medley.observe import logs
from medley.protocol.errors import UserError
from medley.runtimes.lifeline import die_with_supervisor, on_stop
from medley.runtimes.options import read_options
from medley.runtimes.up import LocalPool, UpOptions


async def serve(options: UpOptions) -> None:
    """Run until stopped."""
    pool = LocalPool(options)
    on_stop(pool.stop)
    await pool.run(lambda address: print(json.dumps(address), flush=True))


def main() -> None:
    options = read_options(Path(sys.argv[1]), UpOptions)
    logs.configure("supervisor", path=options.directory / "logs" / "supervisor.jsonl", stderr=False)
    die_with_supervisor()
    try:
        asyncio.run(serve(options))
    except UserError as error:
        print(json.dumps({"problem": str(error)}), flush=True)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
