"""A server and clients in two namespaces with the delay line between them: what kernel TCP makes of a preset."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from medley.protocol.conditions import Conditions

HERE = Path(__file__).resolve().parent
TUN = Path("/dev/net/tun")
SERVER, PORT = "10.78.0.1", 5000


def possible() -> bool:
    """Whether this system lets us make namespaces and TUN devices."""
    from tests.fleet import namespaces

    return namespaces.possible() and TUN.exists()


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, timeout=20)


@dataclass(frozen=True, slots=True)
class Reference:
    """Both namespaces with everything running; addresses of clients are 10.78.1.1 and on."""

    clients: str

    def rounds(self, workers: int, count: int, pull: int, push: int, timeout_s: float = 600.0) -> list[float]:
        """Seconds of each round of `exchange.rounds` between so many clients and the server."""
        sources = [client(number) for number in range(1, workers + 1)]
        words = ["rounds", SERVER, str(PORT), str(count), str(pull), str(push), *sources]
        done = subprocess.run(
            ["ip", "netns", "exec", self.clients, sys.executable, str(HERE / "exchange.py"), *words],
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=True,
        )
        seconds: list[float] = json.loads(done.stdout)
        return seconds


def client(number: int) -> str:
    return f"10.78.1.{number}"


@contextlib.contextmanager
def reference(room: Path, conditions: Conditions, seed: int = 0, workers: int = 8) -> Iterator[Reference]:
    tag = secrets.token_hex(3)
    server, clients = f"mdl-{tag}-s", f"mdl-{tag}-c"
    config = room / f"line-{tag}.json"
    devices = {"server": f"mdls{tag}", "clients": f"mdlc{tag}"}
    config.write_text(json.dumps({**devices, "conditions": asdict(conditions), "seed": seed}))
    started: list[subprocess.Popen[str]] = []
    try:
        for name in (server, clients):
            _ip("netns", "add", name)
        started.append(_said_ready([sys.executable, str(HERE / "delayline.py"), str(config)]))
        _wire(devices["server"], server, [SERVER], "10.78.1.0/24")
        _wire(devices["clients"], clients, [client(n) for n in range(1, workers + 1)], f"{SERVER}/32")
        serving = ["ip", "netns", "exec", server, sys.executable, str(HERE / "exchange.py"), "serve", SERVER, str(PORT)]
        started.append(_said_ready(serving))
        yield Reference(clients)
    finally:
        for process in reversed(started):
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    stream.close()
        for name in (server, clients):
            with contextlib.suppress(subprocess.SubprocessError):
                _ip("netns", "del", name)


def _wire(device: str, namespace: str, addresses: list[str], towards: str) -> None:
    _ip("link", "set", device, "netns", namespace)
    for address in addresses:
        _ip("-n", namespace, "addr", "add", f"{address}/32", "dev", device)
    _ip("-n", namespace, "link", "set", device, "up")
    _ip("-n", namespace, "route", "add", towards, "dev", device)


def _said_ready(command: list[str]) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"}
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n", f"{command} did not start"
    return process
