"""Runs an ASGI application on an address until Ctrl-C or SIGTERM, and stops it in an orderly way."""

from __future__ import annotations

import errno
import logging
import signal
import socket
from collections.abc import Callable
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from medley.protocol.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

    from starlette.types import ASGIApp

CONNECTIONS_MAX = 256
STOP_TIMEOUT_S = 5
KEEP_ALIVE_S = 30


def bind(host: str, port: int, option: str = "--port") -> socket.socket:
    """A listening socket; port 0 takes a free one. Raises UserError, which names `option`, when it cannot be had."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=CONNECTIONS_MAX)
    except OSError as error:
        raise UserError(_cannot_bind(host, port, option, error)) from error


def url_of(sock: socket.socket) -> str:
    """The http:// address of a bound socket."""
    host, port = sock.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def run_server(app: ASGIApp, sock: socket.socket, ready: Callable[[], Any] | None = None) -> None:
    """Serves until a signal; open answers get a few seconds to end. `ready` is called just before serving."""
    import uvicorn

    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        lifespan="on",
        server_header=False,
        limit_concurrency=CONNECTIONS_MAX,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=STOP_TIMEOUT_S,
    )
    if ready is not None:
        ready()

    class Server(uvicorn.Server):
        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            """A second Ctrl-C waits for nobody; what is cut off by it would say so with a traceback."""
            super().handle_exit(sig, frame)
            if self.force_exit:
                logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)

    with _signals_end_quietly():
        Server(config).run(sockets=[sock])


@contextmanager
def _signals_end_quietly() -> Iterator[None]:
    """Uvicorn raises the signal it stopped for once more; here that must not become a traceback or status."""
    previous = {s: signal.signal(s, lambda *_: None) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, old in previous.items():
            signal.signal(number, old)


def _cannot_bind(host: str, port: int, option: str, error: OSError) -> str:
    match error.errno:
        case errno.EADDRINUSE:
            return f"port {port} on {host} is in use: choose another one with {option}, or {option} 0 for a free one"
        case errno.EACCES:
            return f"port {port} on {host} needs rights you do not have: choose a port above 1023 with {option}"
        case errno.EADDRNOTAVAIL:
            return f"{host} is not an address of this machine: try 127.0.0.1"
    return f"cannot serve on {host}:{port}: {error.strerror or error}"
