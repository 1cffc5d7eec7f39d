"""A job's live events, for a command that a person may interrupt at any moment.

The call lives in a thread of its own: a KeyboardInterrupt raised inside gRPC while it makes a call leaves its channel
waiting for ever when it is closed, so the main thread, which gets those, only ever waits for a queue.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from medley.protocol.errors import MedleyError

if TYPE_CHECKING:
    from medley.transports.control.operator import OperatorClient

EVENTS_MAX = 4096
# A wait without a timeout cannot be interrupted on Windows.
WAIT_S = 0.5


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
