"""A job followed until it is over, by a person's command: interruptible at any moment, patient with the coordinator.

The calls that wait live in a thread of their own: a KeyboardInterrupt raised inside gRPC while it makes a call leaves
its channel waiting for ever when it is closed, so the main thread, which gets those, only ever waits for a queue.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from medley.protocol.errors import MedleyError, Unavailable

if TYPE_CHECKING:
    from medley.transports.control.operator import OperatorClient

OVER = ("done", "failed", "cancelled")
EVENTS_MAX = 4096
# A wait without a timeout cannot be interrupted on Windows.
WAIT_S = 0.5
# A killed coordinator is back within seconds; a follower asks for so long before it gives up.
PATIENCE_S = 60.0
PAUSE_S = 0.5


def events(client: OperatorClient, job: str) -> Iterator[dict[str, Any]]:
    """Events until the job is over; UserError or Unavailable as the client raises them. Close the client to end it."""
    news: queue.Queue[dict[str, Any] | MedleyError | None] = queue.Queue(EVENTS_MAX)

    def listen() -> None:
        try:
            for event in client.follow("events", {"job": job}):
                news.put(event)
        except MedleyError as error:
            news.put(error)
        news.put(None)

    threading.Thread(target=listen, name="events", daemon=True).start()
    while True:
        try:
            new = news.get(timeout=WAIT_S)
        except queue.Empty:
            continue
        match new:
            case None:
                return
            case MedleyError():
                raise new
            case _:
                yield new


def live(client: OperatorClient, job: str) -> Iterator[dict[str, Any]]:
    """Events; a coordinator that goes away ends them as the job's end does, and `patiently` tells which it was."""
    try:
        yield from events(client, job)
    except Unavailable:
        return


def patiently(client: OperatorClient, job: str) -> dict[str, Any]:
    """The answer about a job, asked for until the coordinator is back. Raises Unavailable when it does not come."""
    pause = threading.Event()
    for _ in range(int(PATIENCE_S / PAUSE_S)):
        try:
            answer: dict[str, Any] = client.ask("job", {"job": job})
            return answer
        except Unavailable:
            pause.wait(PAUSE_S)
    raise Unavailable(
        f"the coordinator does not answer any more; {job} goes on when it is back ('medley up'), and "
        f"'medley jobs logs {job} --follow' shows it"
    )


def history(client: OperatorClient, job: str) -> Iterator[dict[str, Any]]:
    """Every entry about a job that the coordinator keeps, oldest first, asked for page by page."""
    begin: int | None = 0
    while begin is not None:
        page = client.ask("history", {"job": job, "begin": begin})
        yield from page["entries"]
        begin = page["next"]
