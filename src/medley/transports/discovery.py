"""Finding a coordinator in the local network by multicast DNS, so that nobody types an address.

What is found is a hint and not a proof: anyone in the network can announce anything. A joiner trusts the
authority in its token, and the fingerprint announced here only tells several pools apart. Announcements are
small, and what arrives is checked and bounded like any other message of a stranger.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

from zeroconf import (
    DNSQuestionType,
    Error,
    InterfaceChoice,
    IPVersion,
    NonUniqueNameException,
    ServiceInfo,
    ServiceStateChange,
    Zeroconf,
)
from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf

from medley.concurrency import TaskGroup
from medley.protocol.errors import UserError

SERVICE_TYPE: Final = "_medley._tcp.local."
MAX_FOUND: Final = 32
MAX_ADDRESSES: Final = 16
RESOLVE_TIMEOUT_S: Final = 3.0
TAKEN_TIMEOUT_S: Final = 2.0  # who said its name just now may say it again only after a second
_LOOPBACK: Final = "127.0.0.1"
_FINGERPRINT: Final = re.compile(r"[0-9a-f]{64}")
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._-]{0,50}")


@dataclass(frozen=True, slots=True)
class Found:
    """One announced coordinator. `addresses` are IP addresses, `authority_fingerprint` the sha256 of its
    public key."""

    name: str
    addresses: tuple[str, ...]
    door_port: int
    control_port: int
    authority_fingerprint: str


@asynccontextmanager
async def announced(found: Found, loopback_only: bool = False) -> AsyncIterator[None]:
    """Announce a coordinator while the block runs.

    `loopback_only` announces to processes of this machine. UserError when the name is taken or multicast is
    impossible.
    """
    if not _NAME.fullmatch(found.name):
        raise UserError(
            f"{found.name!r} cannot be announced: use letters, digits, spaces, '.', '_' and '-', at most 51 characters"
        )
    info = AsyncServiceInfo(
        SERVICE_TYPE,
        f"{found.name}.{SERVICE_TYPE}",
        port=found.control_port,
        parsed_addresses=list(found.addresses),
        properties={"door": str(found.door_port), "authority": found.authority_fingerprint},
        server=f"medley-{found.authority_fingerprint[:16]}.local.",
    )
    async with _multicast(loopback_only) as zeroconf:
        try:
            if await _is_taken(zeroconf, info.name):
                raise NonUniqueNameException
            await (await zeroconf.async_register_service(info))
        except NonUniqueNameException as error:
            raise UserError(
                f"another coordinator in this network is already called '{found.name}': give yours another name"
            ) from error
        except Error as error:
            raise UserError(f"'{found.name}' cannot be announced: {error}") from error
        try:
            yield
        finally:
            await (await zeroconf.async_unregister_service(info))


async def _is_taken(zeroconf: AsyncZeroconf, name: str) -> bool:
    """Does anybody answer for this name? Asked so that the answer comes by multicast.

    The library's own question asks for an answer to one socket; of several programs of one machine, which share the
    port, the system hands that answer to any one of them.
    """
    asked = AsyncServiceInfo(SERVICE_TYPE, name)
    return await asked.async_request(zeroconf.zeroconf, TAKEN_TIMEOUT_S * 1000, question_type=DNSQuestionType.QM)


async def find(timeout_s: float, enough: int = MAX_FOUND, loopback_only: bool = False) -> list[Found]:
    """The coordinators that answer within `timeout_s` seconds, sorted by name; sooner once `enough` have.

    An empty list means that none answered: `none_found` has the sentence. UserError when multicast is
    impossible.
    """
    news: asyncio.Queue[str | Found] = asyncio.Queue(2 * MAX_FOUND)
    found: dict[str, Found] = {}

    def heard(zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange) -> None:
        if state_change is ServiceStateChange.Added and not news.full():
            news.put_nowait(name)

    async with _multicast(loopback_only) as zeroconf:
        browser = AsyncServiceBrowser(zeroconf.zeroconf, SERVICE_TYPE, handlers=[heard])
        try:
            async with asyncio.timeout(timeout_s):
                await _collect(zeroconf, news, found, enough)
        except TimeoutError:
            pass
        finally:
            await browser.async_cancel()
    return sorted(found.values(), key=lambda one: one.name)


async def _collect(
    zeroconf: AsyncZeroconf, news: asyncio.Queue[str | Found], found: dict[str, Found], enough: int
) -> None:
    """Fill `found` from names heard, all resolved at once: one that does not answer holds up nobody."""

    async def resolve(name: str) -> None:
        resolved = await _resolve(zeroconf, name)
        if resolved is not None:
            await news.put(resolved)

    async with TaskGroup() as tasks:
        resolving: dict[str, asyncio.Task[None]] = {}
        while len(found) < enough:
            match await news.get():
                case Found() as one:
                    found[one.name] = one
                case name if name not in resolving and len(resolving) < MAX_FOUND:
                    resolving[name] = tasks.create_task(resolve(name))
        for task in resolving.values():
            task.cancel()


def none_found(timeout_s: float) -> str:
    """The sentence for a person when `find` found nothing."""
    return (
        f"no coordinator answered in this network within {timeout_s:g} s: is 'medley up' running on a machine of "
        "the same network? Networks of offices and universities often block multicast: then give the address, "
        "or a token, which carries it"
    )


async def _resolve(zeroconf: AsyncZeroconf, name: str) -> Found | None:
    try:
        info = AsyncServiceInfo(SERVICE_TYPE, name)
        answered = await info.async_request(zeroconf.zeroconf, RESOLVE_TIMEOUT_S * 1000)
    except Error:
        # A stranger's name that zeroconf itself refuses.
        return None
    return checked(info) if answered else None


def checked(info: ServiceInfo) -> Found | None:
    """What a stranger announced, None when it breaks a rule."""
    properties = info.decoded_properties
    plain = info.name.removesuffix(f".{SERVICE_TYPE}")
    fingerprint = properties.get("authority") or ""
    door = properties.get("door") or ""
    addresses = info.parsed_scoped_addresses(IPVersion.All)[:MAX_ADDRESSES]
    right = _NAME.fullmatch(plain) and _FINGERPRINT.fullmatch(fingerprint) and _is_port(door) and addresses
    if not right or info.port is None or not 0 < info.port < 1 << 16:
        return None
    return Found(plain, tuple(addresses), int(door), info.port, fingerprint)


def _is_port(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 5 and 0 < int(text) < 1 << 16


@asynccontextmanager
async def _multicast(loopback_only: bool) -> AsyncIterator[AsyncZeroconf]:
    try:
        zeroconf = AsyncZeroconf(interfaces=[_LOOPBACK] if loopback_only else InterfaceChoice.All)
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"this machine cannot use multicast DNS ({error}): give the coordinator's address instead"
        ) from error
    try:
        yield zeroconf
    finally:
        await zeroconf.async_close()


def reachable_addresses() -> list[str]:
    """This machine's addresses that another machine might reach, best first; loopback only when there is no
    other."""
    found: list[str] = []
    for family, target in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):
        # Connecting a datagram socket sends nothing: it asks the system which of our addresses it would use.
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            try:
                probe.connect((target, 9))
                address = str(probe.getsockname()[0])
            except OSError:
                continue
        if not ipaddress.ip_address(address).is_unspecified:
            found.append(address)
    return found or [_LOOPBACK]
