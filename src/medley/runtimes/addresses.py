"""Addresses as people and peers use them: which are this machine only, and under which one peers reach us.

An address listened at may mean "all of this machine" (0.0.0.0); what is told to others must be one that they can
dial.
"""

from __future__ import annotations

import base64
import ipaddress
import re
import socket
from collections.abc import Sequence

import psutil

from medley.protocol.errors import PeerError, UserError
from medley.protocol.hosts import is_loopback as is_loopback
from medley.protocol.messages import Address
from medley.transports.discovery import reachable_addresses

LOOPBACK = "127.0.0.1"
KEY_NBYTES = 32
_DISCARD = 9
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,251}[A-Za-z0-9])?|[0-9A-Fa-f:]{2,45}")


def is_everywhere(host: str) -> bool:
    """Whether listening at `host` means every address of this machine."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_unspecified
    except ValueError:
        return False


def split(address: str) -> tuple[str, int]:
    """ "host:port" or "[host]:port" as a pair. Raises UserError."""
    host, colon, port = address.strip().rpartition(":")
    host = host.removeprefix("tcp://").strip("[]")
    if not colon or not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise UserError(f"'{address}' is no address: write HOST:PORT, such as 192.168.1.20:7071")
    return host, int(port)


def address_of(host: str, port: int) -> str:
    """The opposite of `split`."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def check_address(address: Address, encrypted: bool) -> None:
    """Raises PeerError unless a machine's engine can be dialled there, with a key exactly where the pool encrypts."""
    try:
        key = base64.b64decode(address.key, validate=True)
        host, _ = split(address.endpoint)
    except (ValueError, UserError):
        key, host = b"", ""
    right = len(key) == (KEY_NBYTES if encrypted else 0) and _HOST.fullmatch(host) and not is_everywhere(host)
    if not right or not address.endpoint.startswith("tcp://"):
        raise PeerError(f"'{address.endpoint[:80]}' with a key of {len(key)} bytes is no address of an engine")


def advertised(host: str, wanted: Sequence[str] = ()) -> tuple[str, ...]:
    """Names under which others reach a coordinator that listens at `host`, best first; loopback if nobody else does.

    Raises UserError for a wanted one that is neither an address nor a host name.
    """
    for name in wanted:
        if not _HOST.fullmatch(name):
            raise UserError(f"'{name}' cannot be advertised: write a host name or an IP address, without a port")
    if wanted:
        return tuple(wanted)
    if is_loopback(host):
        return (LOOPBACK,)
    if not is_everywhere(host):
        return (host,)
    return tuple(name for name in own_addresses() if ":" in host or ":" not in name) or (LOOPBACK,)


def own_addresses() -> tuple[str, ...]:
    """This machine's addresses that others may reach, best first; loopback only when there is no other."""
    found = [name for name in reachable_addresses() if not is_loopback(name)]
    # A network without a way out, such as five machines on one switch, has no route to ask the system about.
    return tuple(found or _interfaces()) or (LOOPBACK,)


def _interfaces() -> list[str]:
    up = {name for name, state in psutil.net_if_stats().items() if state.isup}
    every = [
        a.address
        for name, addresses in psutil.net_if_addrs().items()
        if name in up
        for a in addresses
        if a.family == socket.AF_INET
    ]
    return [a for a in every if not ipaddress.ip_address(a).is_loopback and not ipaddress.ip_address(a).is_link_local]


def dialled_here(host: str) -> str:
    """What a process of this machine dials to reach a socket that listens at `host`."""
    if not is_everywhere(host):
        return host
    return "::1" if ":" in host else LOOPBACK


def route_to(host: str) -> str:
    """This machine's own address on the way to `host`; loopback when there is no way yet."""
    try:
        family, _, _, _, where = socket.getaddrinfo(host, _DISCARD, type=socket.SOCK_DGRAM)[0]
        # Connecting a datagram socket sends nothing: it asks the system which of our addresses it would use.
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(where)
            return str(probe.getsockname()[0])
    except OSError:
        return LOOPBACK


def reachable_here(host: str, names: Sequence[str]) -> str:
    """The address for tensor sockets on the coordinator's own machine: peers reach it, and we can listen at it."""
    if is_loopback(host):
        return LOOPBACK
    candidates = [*names, *own_addresses()] if is_everywhere(host) else [host]
    return next((name for name in candidates if _is_own_address(name)), LOOPBACK)


def _is_own_address(name: str) -> bool:
    try:
        version = ipaddress.ip_address(name).version
        with socket.socket(socket.AF_INET if version == 4 else socket.AF_INET6, socket.SOCK_STREAM) as probe:
            probe.bind((name, 0))
    except (ValueError, OSError):
        return False
    return True
