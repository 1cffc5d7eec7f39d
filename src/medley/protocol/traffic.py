"""Which class of traffic a control message belongs to. What moves on the tensor plane is always `ps_sync`."""

from __future__ import annotations

from medley.protocol.conditions import TrafficClass
from medley.protocol.messages import Evaluated, Heartbeat, Hello, Message, Welcome


def class_of(message: Message) -> TrafficClass:
    """`heartbeat` says that a machine lives, `telemetry` what was measured, `task` everything that work waits for."""
    match message:
        case Heartbeat() | Hello() | Welcome():
            return "heartbeat"
        case Evaluated():
            return "telemetry"
        case _:
            return "task"
