"""The sample page on a real socket."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
import uvicorn
from starlette.applications import Starlette
from tests.dashboard.sample import SampleFeed
from tests.waiting import until

from medley.dashboard.feed import Event
from medley.dashboard.routes import OPEN_PATHS, make_routes
from medley.serving.guard import Guard
from medley.serving.server import bind, url_of


@dataclass(frozen=True, slots=True)
class Shown:
    """A page that is being served, and the loop that serves it."""

    url: str
    feed: SampleFeed
    loop: asyncio.AbstractEventLoop

    def publish(self, event: Event) -> None:
        self.loop.call_soon_threadsafe(self.feed.broadcast.publish, event)


@contextmanager
def shown(feed: SampleFeed, key: str | None = None) -> Iterator[Shown]:
    """Serves the page of `feed` until the block ends."""
    app = Guard(Starlette(routes=make_routes(feed)), key, open_paths=OPEN_PATHS)
    sock = bind("127.0.0.1", 0)
    config = uvicorn.Config(app, log_level="warning", lifespan="off", timeout_graceful_shutdown=1)
    server, loop = uvicorn.Server(config), asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_until_complete, args=[server.serve([sock])])
    thread.start()
    try:
        until(lambda: server.started, what="the page")
        yield Shown(url_of(sock), feed, loop)
    finally:
        server.should_exit = True
        thread.join(20)
        loop.close()
        sock.close()


@pytest.fixture
def page() -> Iterator[Shown]:
    with shown(SampleFeed()) as one:
        yield one
