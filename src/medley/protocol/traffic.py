"""Which class of traffic a control message belongs to. What moves on the tensor plane is always `ps_sync`."""

from __future__ import annotations

from medley.protocol.conditions import TrafficClass
from medley.protocol.messages import Evaluated, Heartbeat, Hello, Message, Welcome

_CLASSES: dict[type, TrafficClass] = {
    Heartbeat: "heartbeat",
    Hello: "heartbeat",
    Welcome: "heartbeat",
    Evaluated: "telemetry",
}


def class_of(message: Message) -> TrafficClass:
    """`heartbeat` says that a machine lives, `telemetry` what was measured, `task` everything that work waits for."""
    return _CLASSES.get(type(message), "task")
