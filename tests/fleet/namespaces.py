"""Two machines made of network namespaces, one cable between them. Needs root and `ip`; takes all away afterwards."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
END_S = 90.0


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, timeout=20)


def possible() -> bool:
    """Whether this system lets us make network namespaces."""
    if shutil.which("ip") is None or not hasattr(os, "geteuid") or os.geteuid() != 0:
        return False
    name = f"medley-{secrets.token_hex(3)}"
    try:
        _ip("netns", "add", name)
        _ip("netns", "del", name)
    except (subprocess.SubprocessError, OSError):
        return False
    return True


@dataclass
class Machine:
    """One namespace; `address` is its own on the cable."""

    name: str
    address: str
    room: Path
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self, label: str, *arguments: str, **environment: str) -> subprocess.Popen[bytes]:
        """A process of this machine that runs until `stop`; what it says goes to `<label>.out`."""
        with (self.room / f"{label}.out").open("wb") as out:
            process = subprocess.Popen(
                ["ip", "netns", "exec", self.name, sys.executable, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=self._environment(environment),
            )
        self.started.append(process)
        return process

    def run(self, *arguments: str, timeout_s: float = 60.0) -> subprocess.CompletedProcess[str]:
        """A process of this machine that ends by itself."""
        return subprocess.run(
            ["ip", "netns", "exec", self.name, sys.executable, *arguments],
            capture_output=True,
            text=True,
            timeout=timeout_s,
            env=self._environment({}),
        )

    def said(self, label: str) -> str:
        return (self.room / f"{label}.out").read_text(errors="replace")

    def cable(self, state: str) -> None:
        """Put the cable in ("up") or pull it ("down")."""
        _ip("-n", self.name, "link", "set", "cable", state)
        if state == "up":
            _ip("-n", self.name, "route", "replace", "default", "dev", "cable")

    def _environment(self, more: dict[str, str]) -> dict[str, str]:
        kept = {key: value for key, value in os.environ.items() if not key.startswith("MEDLEY_")}
        return {**kept, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "MEDLEY_HOME": str(self.room), **more}

    def stop(self) -> None:
        for process in reversed(self.started):
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in self.started:
            try:
                process.wait(END_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextlib.contextmanager
def two_machines(room: Path) -> Iterator[tuple[Machine, Machine]]:
    """A pair with a cable between them and no other way out."""
    tag = secrets.token_hex(3)
    names = [f"medley-{tag}-{one}" for one in "ab"]
    machines = [Machine(name, f"10.77.0.{n}", room / name[-1]) for n, name in enumerate(names, 1)]
    try:
        for name in names:
            _ip("netns", "add", name)
        _ip("link", "add", "cable", "netns", names[0], "type", "veth", "peer", "name", "cable", "netns", names[1])
        for machine in machines:
            machine.room.mkdir()
            _ip("-n", machine.name, "link", "set", "lo", "up")
            _ip("-n", machine.name, "addr", "add", f"{machine.address}/24", "dev", "cable")
            machine.cable("up")
        yield machines[0], machines[1]
    finally:
        for machine in machines:
            machine.stop()
        for name in names:
            with contextlib.suppress(subprocess.SubprocessError):
                _ip("netns", "del", name)
