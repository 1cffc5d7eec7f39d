"""The entry of every engine process: `python -m medley.runtimes.child KIND`, with commands on stdin, reports on
stdout.

KIND is worker, shard, stage, vault or preparer. The process lives exactly as long as its parent's end of the pipe.
"""

from __future__ import annotations

import asyncio
import faulthandler
import signal
import sys


def main() -> None:
    """Host one engine until the pipe closes."""
    faulthandler.enable()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    kind = sys.argv[1]
    match kind:
        case "worker":
            from medley.runtimes.children.worker import serve
        case "shard":
            from medley.runtimes.children.shard import serve
        case "stage":
            from medley.runtimes.children.stage import serve
        case "vault":
            from medley.runtimes.children.vault import serve
        case "preparer":
            from medley.runtimes.children.preparer import serve
        case _:
            raise SystemExit(f"unknown kind of engine '{kind}'")
    asyncio.run(serve())


if __name__ == "__main__":
    main()
