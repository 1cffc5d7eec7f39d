"""Strangers at a listening socket: connections that end before their handshake did are counted, and logged sparsely.

ZeroMQ drops such a connection by itself; this only makes it visible. Lives on the I/O thread.
"""

from __future__ import annotations

import logging
from collections import Counter

import zmq
from zmq.utils.monitor import parse_monitor_message

REASONS: dict[int, str] = {
    zmq.EVENT_HANDSHAKE_FAILED_AUTH: "its key is not admitted",
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL: "it offered another security than ours, or broke the protocol",
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL: "it went away during the handshake, or took too long",
}
EVENTS = zmq.EVENT_ACCEPTED | zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED | sum(REASONS)
FRESH_MAX = 4096
log = logging.getLogger(__name__)


class Refusals:
    """Watches one bound socket."""

    def __init__(self, socket: zmq.Socket[bytes], counters: Counter[str]) -> None:
        self._socket, self._counters = socket, counters
        # Descriptors without a handshake yet, oldest first: ZeroMQ does not say which one succeeded.
        self._fresh: dict[int, None] = {}
        self._reason = ""
        self.monitor = socket.get_monitor_socket(EVENTS)

    def read(self) -> None:
        """Take what the monitor has."""
        try:
            while True:
                message = parse_monitor_message(self.monitor.recv_multipart(zmq.DONTWAIT))
                self._happened(int(message["event"]), int(message["value"]))
        except zmq.Again:
            return

    def close(self) -> None:
        self._socket.disable_monitor()
        self.monitor.close(0)

    def _happened(self, event: int, value: int) -> None:
        match event:
            case zmq.EVENT_ACCEPTED if len(self._fresh) < FRESH_MAX:
                self._fresh[value] = None
            case zmq.EVENT_HANDSHAKE_SUCCEEDED if self._fresh:
                del self._fresh[next(iter(self._fresh))]
            case zmq.EVENT_DISCONNECTED if value in self._fresh:
                del self._fresh[value]
                self._refused(self._reason or "it does not speak our protocol")
                self._reason = ""
            case _:
                self._reason = REASONS.get(event, self._reason)

    def _refused(self, reason: str) -> None:
        """The 1st, 2nd, 4th, 8th ... is logged: a scanner must not fill a disk."""
        self._counters["connections_refused"] += 1
        number = self._counters["connections_refused"]
        if number & (number - 1) == 0:
            log.warning("refused a connection to the tensor port (number %d): %s", number, reason)
