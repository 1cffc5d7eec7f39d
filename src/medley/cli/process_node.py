"""A node's process, as the supervisor starts it: `python -m medley.cli.process_node OPTIONS.json CREDENTIALS.pem`."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from pathlib import Path

from medley.observe import logs
from medley.observe.failpoints import describe_process
from medley.protocol.errors import UserError
from medley.runtimes.lifeline import die_with_supervisor, leave, on_stop
from medley.runtimes.node import NodeHost, NodeOptions
from medley.runtimes.options import read_options
from medley.runtimes.supervisor import MISTAKE
from medley.transports.identity import Credentials


async def serve(options: NodeOptions, credentials: Credentials) -> None:
    """Run until stopped; engines end with us."""
    task = asyncio.current_task()
    assert task is not None
    on_stop(task.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await NodeHost(options, credentials, lambda new: new.save(sys.argv[2])).run()


def main() -> None:
    options = read_options(Path(sys.argv[1]), NodeOptions)
    logs.configure(options.name, path=options.directory / "node.jsonl", stderr=False)
    describe_process(role="node", node=options.name)
    die_with_supervisor()
    (options.directory / "pid").write_text(str(os.getpid()))
    try:
        asyncio.run(serve(options, Credentials.load(sys.argv[2])))
    except UserError as error:
        print(error, file=sys.stderr, flush=True)
        leave(MISTAKE)
    leave(0)


if __name__ == "__main__":
    main()
