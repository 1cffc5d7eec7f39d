"""How a supervised process learns that it should stop: a signal asks, the end of its standard input tells."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import NoReturn


def on_stop(stop: Callable[[], object]) -> None:
    """Call `stop` on the running loop at SIGTERM or SIGINT (once each; where the system has them)."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        try:
            loop.add_signal_handler(number, stop)
        except NotImplementedError:  # Windows: its own console events arrive through signal.signal
            signal.signal(number, lambda *_: loop.call_soon_threadsafe(stop))


def leave(status: int) -> NoReturn:
    """End this process now. gRPC's servers can hang the interpreter's own end, and everything is on disk already."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def die_with_supervisor() -> None:
    """End this process, at once, when whoever started it is gone. Crash-only: a restart finds everything."""

    def watch() -> None:
        while os.read(0, 4096):
            pass
        os._exit(137)

    threading.Thread(target=watch, name="lifeline", daemon=True).start()
