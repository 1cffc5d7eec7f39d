"""The coordinator's process, as the supervisor starts it: `python -m medley.cli.process_coordinator OPTIONS.json`.

Assembles the host, the operator's answers and the page, and writes where they listen to `address.json`.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

from medley.dashboard.pool import serve_page
from medley.jobs.operator import Operator
from medley.observe import logs
from medley.observe.failpoints import describe_process
from medley.protocol.errors import Damaged, FrameError, UserError
from medley.runtimes.addresses import address_of, dialled_here, split
from medley.runtimes.coordinator import CoordinatorHost, CoordinatorOptions
from medley.runtimes.lifeline import die_with_supervisor, leave, on_stop
from medley.runtimes.options import read_options
from medley.runtimes.supervisor import MISTAKE
from medley.store.errors import Fenced, StoreFull
from medley.transports.identity.authority import SERVER_LIFE_S
from medley.transports.identity.credentials import write_private


async def serve(options: CoordinatorOptions) -> None:
    """Run until stopped."""
    host = _opened(options)
    operator = Operator(host)
    operator_pem = host.authority.enrol("operator", "operator", host.clock.wall_ns(), SERVER_LIFE_S)
    operator_pem.save(options.directory / "operator.pem")
    on_stop(host.stop)
    async with serve_page(host, operator) as http:

        def ready() -> None:
            assert host.server is not None
            where = {
                "control": _here(host.server.control_address),
                "door": _here(host.server.door_address),
                "http": http,
                "pid": os.getpid(),
                "term": host.term,
            }
            write_private(options.directory / "address.json", json.dumps(where).encode())

        await host.run(operator, ready)


def _opened(options: CoordinatorOptions) -> CoordinatorHost:
    """The host with all that its log holds. Raises UserError for stored things that starting again cannot mend."""
    try:
        return CoordinatorHost(options)
    except (FrameError, Damaged) as error:
        raise UserError(
            f"what is stored in {options.directory} cannot be read ({error}): put a copy of it back, "
            "or start in another directory with --dir"
        ) from error


def main() -> None:
    options = read_options(Path(sys.argv[1]), CoordinatorOptions)
    logs.configure("coordinator", path=options.directory / "logs" / "coordinator.jsonl", stderr=False)
    describe_process(role="coordinator")
    die_with_supervisor()
    try:
        asyncio.run(serve(options))
    except* (UserError, Fenced, StoreFull) as errors:
        print("; ".join(_sentences(errors)), file=sys.stderr, flush=True)
        leave(MISTAKE)
    leave(0)


def _sentences(error: BaseException) -> list[str]:
    """What every error in a group of groups says."""
    if isinstance(error, BaseExceptionGroup):
        return [sentence for inner in error.exceptions for sentence in _sentences(inner)]
    return [str(error)]


def _here(address: str) -> str:
    """What a process of this machine dials: nobody can dial 0.0.0.0 on every system."""
    host, port = split(address)
    return address_of(dialled_here(host), port)


if __name__ == "__main__":
    main()
