"""Bad links on purpose, on real sockets: what a described link would do to the bytes of both planes.

The tensor plane's connections pass a proxy (`proxy`), byte for byte; the control plane's messages wait in lanes
(`control`), each class of traffic under its own conditions. How long, is the model of TCP's business, which is handed
in; so are clock and chance. Where no link is described none of this exists.
"""

from __future__ import annotations

from medley.transports.shaping.contract import Limits, Moved, Sender, Timer
from medley.transports.shaping.control import ControlLink, Conversation
from medley.transports.shaping.proxy import Front, Proxy

__all__ = ["ControlLink", "Conversation", "Front", "Limits", "Moved", "Proxy", "Sender", "Timer"]
