"""Tells the local network where the coordinator is, for as long as it runs.

Nobody depends on it: a token carries addresses too. So a network without multicast is a line in the log.
"""

from __future__ import annotations

import asyncio
import ipaddress
import platform
import re
from collections.abc import Sequence

from medley.observe.logs import logger
from medley.protocol.errors import UserError
from medley.runtimes.addresses import own_addresses
from medley.transports.discovery import Found, announced


async def announce(fingerprint: str, names: Sequence[str], control_port: int, door_port: int) -> None:
    """Announce until cancelled: `fingerprint` is the authority's, `names` are what others reach us by."""
    addresses = tuple(name for name in names if _is_address(name)) or own_addresses()
    machine = re.sub("[^A-Za-z0-9-]+", "-", platform.node()).strip("-")[:32] or "medley"
    found = Found(f"{machine} {fingerprint[:8]}", addresses, door_port, control_port, fingerprint)
    log = logger("announce")
    try:
        async with announced(found):
            log.info("announced", name=found.name, addresses=list(addresses))
            await asyncio.Event().wait()
    except UserError as error:
        log.warning("not announced", reason=str(error))


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
