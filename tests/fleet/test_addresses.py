"""Which addresses are told to others, and mistakes in them, in one sentence each."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from medley.protocol.errors import PeerError, UserError
from medley.protocol.messages import Address
from medley.runtimes import addresses
from medley.runtimes.children.environment import ports
from medley.runtimes.lock import Lock
from medley.runtimes.up import LocalPool, UpOptions


@pytest.mark.parametrize(
    ("text", "pair"),
    [("10.0.0.1:7071", ("10.0.0.1", 7071)), ("[fd00::2]:1", ("fd00::2", 1)), ("tcp://a.b:9", ("a.b", 9))],
)
def test_an_address_is_a_host_and_a_port(text: str, pair: tuple[str, int]) -> None:
    assert addresses.split(text) == pair
    assert addresses.split(addresses.address_of(*pair)) == pair


@pytest.mark.parametrize("text", ["", "host", "host:", ":7071", "host:0", "host:65536", "host:x"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="is no address"):
        addresses.split(text)


def test_nobody_is_told_to_dial_everywhere() -> None:
    told = addresses.advertised("0.0.0.0")
    assert told and not any(addresses.is_everywhere(name) or ":" in name for name in told)
    assert addresses.advertised("127.0.0.1") == ("127.0.0.1",)
    assert addresses.advertised("10.1.2.3") == ("10.1.2.3",)
    assert addresses.advertised("0.0.0.0", ("lab.example.org",)) == ("lab.example.org",)


def test_tensor_sockets_of_the_coordinators_machine_listen_where_peers_reach_them() -> None:
    assert addresses.reachable_here("127.0.0.1", ()) == "127.0.0.1"
    # A name in front of a router is told to others, but nobody here can listen at it.
    assert addresses.reachable_here("0.0.0.0", ("192.0.2.200", "lab.example.org")) in addresses.own_addresses()
    assert addresses.route_to("127.0.0.1") == "127.0.0.1"


@pytest.mark.parametrize("wanted", ["80-x", "7090-7080", "0-5", "7080-70000", "-", "a"])
def test_a_range_of_ports_that_is_none_is_refused(wanted: str) -> None:
    with pytest.raises(UserError, match="is no range of ports"):
        ports(wanted)


def test_a_range_of_ports() -> None:
    assert list(ports("7080-7082")) == [7080, 7081, 7082]
    assert list(ports("7080")) == [7080]
    assert list(ports("")) == []


@pytest.mark.parametrize(
    ("endpoint", "key", "encrypted", "right"),
    [
        ("tcp://10.0.0.1:7080", "A" * 43 + "=", True, True),
        ("tcp://10.0.0.1:7080", "", False, True),
        ("tcp://10.0.0.1:7080", "", True, False),
        ("tcp://10.0.0.1:7080", "A" * 43 + "=", False, False),
        ("tcp://10.0.0.1:7080", "not a key", True, False),
        ("tcp://0.0.0.0:7080", "A" * 43 + "=", True, False),
        ("ipc:///etc/passwd:1", "A" * 43 + "=", True, False),
        ("10.0.0.1:7080", "A" * 43 + "=", True, False),
        ("tcp://10.0.0.1:0", "A" * 43 + "=", True, False),
    ],
)
def test_what_a_machine_says_of_its_engine_is_checked(endpoint: str, key: str, encrypted: bool, right: bool) -> None:
    if right:
        addresses.check_address(Address(endpoint, key), encrypted)
    else:
        with pytest.raises(PeerError, match="no address of an engine"):
            addresses.check_address(Address(endpoint, key), encrypted)


def refusal(options: UpOptions) -> str:
    async def up() -> None:
        await LocalPool(options).run(lambda where: None)

    with pytest.raises(UserError) as error:
        asyncio.run(up())
    return str(error.value)


def test_what_cannot_be_served_is_one_sentence(tmp_path: Path) -> None:
    options = UpOptions(tmp_path, host="0.0.0.0", workers=0)
    assert "encryption must stay on" in refusal(replace(options, encrypt=False))
    assert "cannot be advertised" in refusal(replace(options, advertised=("not a host!",)))
    assert "no range of ports" in refusal(replace(options, tensor_ports="many"))
    assert "cannot listen on 192.0.2.200" in refusal(replace(options, host="192.0.2.200"))


@pytest.mark.parametrize("which", ["control_port", "door_port", "http_port"])
def test_a_port_in_use_is_named(tmp_path: Path, which: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        said = refusal(replace(UpOptions(tmp_path, workers=0), **{which: port}))
    assert str(port) in said
    assert "in use" in said


def test_one_coordinator_for_one_directory(tmp_path: Path) -> None:
    held = Lock(tmp_path / "lock", "")
    assert "runs already" in refusal(UpOptions(tmp_path, workers=0))
    held.release()
