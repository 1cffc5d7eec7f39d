"""Networks that stand in the way: machines behind routers that translate addresses, and a firewall that lets two ports
through. Made of network namespaces; needs root, `ip` and `nft`; all is taken away afterwards.
"""

from __future__ import annotations

import contextlib
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.fleet.namespaces import Machine, possible

COORDINATOR = "198.51.100.1"
HOME = "192.168.7"  # both homes use the same private addresses, as homes do


def translating() -> bool:
    """Whether this system can do all of that."""
    return shutil.which("nft") is not None and possible()


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, timeout=20)


def _within(name: str, *command: str, text: str = "") -> None:
    subprocess.run(
        ["ip", "netns", "exec", name, *command], check=True, capture_output=True, input=text.encode(), timeout=20
    )


def _cable(one: str, its: str, other: str, others: str) -> None:
    _ip("link", "add", its, "netns", one, "type", "veth", "peer", "name", others, "netns", other)


def _address(name: str, device: str, address: str) -> None:
    _ip("-n", name, "addr", "add", address, "dev", device)
    _ip("-n", name, "link", "set", device, "up")


@contextlib.contextmanager
def three_machines(room: Path) -> Iterator[tuple[Machine, Machine, Machine]]:
    """A coordinator that everybody reaches, and two homes: they dial out, and nobody can dial in."""
    tag = secrets.token_hex(3)
    names = {role: f"medley-{tag}-{role}" for role in ("net", "c", "ra", "rb", "a", "b")}
    machines = [
        Machine(names["c"], COORDINATOR, room / "c"),
        Machine(names["a"], f"{HOME}.2", room / "a"),
        Machine(names["b"], f"{HOME}.2", room / "b"),
    ]
    try:
        for name in names.values():
            _ip("netns", "add", name)
            _ip("-n", name, "link", "set", "lo", "up")
        for machine in machines:
            machine.room.mkdir()
        _internet(names)
        for n, (router, home) in enumerate((("ra", "a"), ("rb", "b")), 11):
            _behind(names[router], names[home], f"198.51.100.{n}")
        yield machines[0], machines[1], machines[2]
    finally:
        for machine in machines:
            machine.stop()
        for name in names.values():
            with contextlib.suppress(subprocess.SubprocessError):
                _ip("netns", "del", name)


def _internet(names: dict[str, str]) -> None:
    """A switch with the coordinator and both routers at it."""
    net = names["net"]
    _ip("-n", net, "link", "add", "switch", "type", "bridge")
    _ip("-n", net, "link", "set", "switch", "up")
    for role in ("c", "ra", "rb"):
        _cable(names[role], "wan", net, role)
        _ip("-n", net, "link", "set", role, "master", "switch", "up")
    _address(names["c"], "wan", f"{COORDINATOR}/24")
    _ip("-n", names["c"], "route", "add", "default", "dev", "wan")


def _behind(router: str, home: str, public: str) -> None:
    """A home behind a router that translates its addresses and lets nothing in that was not asked for."""
    _address(router, "wan", f"{public}/24")
    _cable(router, "lan", home, "cable")
    _address(router, "lan", f"{HOME}.1/24")
    _address(home, "cable", f"{HOME}.2/24")
    _ip("-n", home, "route", "add", "default", "via", f"{HOME}.1")
    _within(router, "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")
    _within(router, "nft", "-f", "-", text=_TRANSLATE)


_TRANSLATE = """
table ip translation {
  chain out {
    type nat hook postrouting priority 100
    oifname "wan" masquerade
  }
  chain through {
    type filter hook forward priority 0; policy drop;
    ct state established,related accept
    iifname "lan" oifname "wan" accept
  }
}
"""


def only_ports(machine: Machine, *ports: int) -> None:
    """From now on nothing but TCP to these ports leaves the machine, and only answers come in."""
    listed = ", ".join(map(str, ports))
    rules = f"""
table ip wall {{
  chain out {{
    type filter hook output priority 0; policy drop;
    oifname "lo" accept
    ct state established,related accept
    tcp dport {{ {listed} }} accept
  }}
  chain in {{
    type filter hook input priority 0; policy drop;
    iifname "lo" accept
    ct state established,related accept
  }}
}}
"""
    _within(machine.name, "nft", "-f", "-", text=rules)
