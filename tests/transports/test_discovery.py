"""A coordinator is found by name over multicast of this machine, and a stranger's nonsense is not."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
from dataclasses import replace
from typing import Any

import pytest
from zeroconf import ServiceInfo

from medley.protocol.errors import UserError
from medley.transports.discovery import (
    SERVICE_TYPE,
    Found,
    announced,
    checked,
    find,
    none_found,
    reachable_addresses,
)

WAIT_S = 10.0


def _multicast_works() -> bool:
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
    ):
        try:
            receiver.bind(("", 0))
            group = socket.inet_aton("224.0.0.251") + socket.inet_aton("127.0.0.1")
            receiver.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group)
            receiver.settimeout(2)
            sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("127.0.0.1"))
            sender.sendto(b"probe", ("224.0.0.251", receiver.getsockname()[1]))
            return receiver.recv(16) == b"probe"
        except OSError:
            return False


needs_multicast = pytest.mark.skipif(not _multicast_works(), reason="no multicast on the loopback interface")


def coordinator(fingerprint: str = "ab" * 32) -> Found:
    # Other tests on this machine may announce too: a name of our own tells them apart.
    return Found(f"lab {secrets.token_hex(4)}", ("127.0.0.1",), 7421, 7420, fingerprint)


async def find_ours(name: str) -> Found | None:
    async with asyncio.timeout(WAIT_S * 3):
        for enough in range(1, 33):
            found = [one for one in await find(WAIT_S, enough, loopback_only=True) if one.name == name]
            if found:
                return found[0]
    return None


@needs_multicast
async def test_what_is_announced_is_found_whole() -> None:
    ours = coordinator()
    async with announced(ours, loopback_only=True):
        assert await find_ours(ours.name) == ours


@needs_multicast
async def test_a_name_that_is_taken_is_one_sentence() -> None:
    ours = coordinator()
    async with announced(ours, loopback_only=True):
        with pytest.raises(UserError, match="already called"):
            async with announced(replace(ours, authority_fingerprint="cd" * 32), loopback_only=True):
                pass


def announcement(**different: Any) -> ServiceInfo:
    name = different.pop("name", "lab")
    properties = {"door": "7421", "authority": "ab" * 32} | different.pop("properties", {})
    options = {"port": 7420, "parsed_addresses": ["10.1.2.3"], "server": "lab.local."} | different
    return ServiceInfo(SERVICE_TYPE, f"{name}.{SERVICE_TYPE}", properties=properties, **options)


def test_a_right_announcement_is_taken() -> None:
    assert checked(announcement()) == Found("lab", ("10.1.2.3",), 7421, 7420, "ab" * 32)
    crowded = checked(announcement(parsed_addresses=[f"10.1.2.{n}" for n in range(99)]))
    assert crowded is not None and len(crowded.addresses) == 16


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": "<b>evil</b>"},
        {"properties": {"door": "99999999999"}},
        {"properties": {"door": "٣"}},
        {"properties": {"door": None}},
        {"properties": {"door": b"\xff\xfe"}},
        {"properties": {"authority": "<script>"}},
        {"port": 0},
        {"parsed_addresses": []},
    ],
)
def test_a_strangers_nonsense_is_ignored(wrong: dict[str, Any]) -> None:
    assert checked(announcement(**wrong)) is None


@needs_multicast
async def test_nothing_to_find_is_an_empty_list_and_a_sentence() -> None:
    absent = coordinator()
    assert absent not in await find(0.2, loopback_only=True)
    assert "no coordinator answered in this network within 0.2 s" in none_found(0.2)


async def test_a_name_that_cannot_be_announced_is_one_sentence() -> None:
    with pytest.raises(UserError, match="cannot be announced"):
        async with announced(replace(coordinator(), name="bad\nname")):
            pass


def test_reachable_addresses_are_addresses() -> None:
    found = reachable_addresses()
    assert found
    for address in found:
        with contextlib.closing(socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)) as probe:
            probe.bind((address, 0))
