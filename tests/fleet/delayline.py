"""The reference for shaped links: kernel TCP through two TUN devices; delay, loss and rate are made between them here.

`python delayline.py CONFIG.json` opens the devices, says "ready" and forwards until its standard input ends. Clients
are told apart by the last octet of their address; each has a link of its own, drawn from its own seed: a token bucket
with a bounded queue for each direction, a delay drawn anew for every spell (gamma: mean of half a round trip, the
stated deviation; packets keep their order), losses, second copies, and seconds in which nothing passes. It shares no
code with the models that are measured against it.
"""

from __future__ import annotations

import contextlib
import fcntl
import heapq
import json
import os
import random
import select
import struct
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
PACKET_NBYTES = 2048
QUEUE_S = 0.1  # a bottleneck's buffer, at least; otherwise one round trip
SPELL_S = 0.02  # a drawn delay lasts so long, at least; otherwise half a round trip


@dataclass(slots=True)
class Way:
    """One direction of one client's link."""

    conditions: dict[str, float]
    rate_bytes_per_s: float
    phase_s: float
    rng: random.Random
    free_s: float = 0.0
    last_s: float = 0.0
    spell_ends_s: float = 0.0
    delay_s: float = 0.0

    def due(self, now: float, nbytes: int) -> list[float]:
        """When copies of this packet come out: none, one or two."""
        c = self.conditions
        if self._down(now):
            return []
        out = [self._one(now, nbytes)]
        if self.rng.random() < c["duplication"]:
            out.append(self._one(now, nbytes))
        return [at for at in out if at is not None]

    def _one(self, now: float, nbytes: int) -> float | None:
        c = self.conditions
        begins = max(now, self.free_s)
        if begins - now > max(QUEUE_S, c["rtt_ms"] / 1000):
            return None
        if self.rate_bytes_per_s:
            self.free_s = begins = begins + nbytes / self.rate_bytes_per_s
        if self.rng.random() < c["loss"]:
            return None
        self.last_s = max(self.last_s, begins + self._delay(now))
        return self.last_s

    def _delay(self, now: float) -> float:
        mean_s, deviation_s = self.conditions["rtt_ms"] / 2000, self.conditions["jitter_ms"] / 1000
        if not deviation_s:
            return mean_s
        if now >= self.spell_ends_s:
            self.spell_ends_s = now + max(SPELL_S, mean_s)
            shape = (mean_s / deviation_s) ** 2
            self.delay_s = self.rng.gammavariate(shape, mean_s / shape)
        return self.delay_s

    def _down(self, now: float) -> bool:
        up_s, down_s = self.conditions["up_s"], self.conditions["down_s"]
        return down_s > 0 and (now + self.phase_s) % (up_s + down_s) >= up_s


@dataclass(slots=True)
class Line:
    """Both devices and everything on its way between them."""

    conditions: dict[str, float]
    seed: int
    ways: dict[tuple[int, str], Way] = field(default_factory=dict)
    heap: list[tuple[float, int, int, bytes]] = field(default_factory=list)
    count: int = 0

    def way(self, client: int, direction: str) -> Way:
        if (client, direction) not in self.ways:
            both = random.Random(f"{self.seed}/{client}")
            phase_s = both.random() * (self.conditions["up_s"] + self.conditions["down_s"])
            rng = random.Random(f"{self.seed}/{client}/{direction}")
            rate = self.conditions[f"{direction}_bytes_per_s"]
            self.ways[client, direction] = Way(self.conditions, rate, phase_s, rng)
        return self.ways[client, direction]

    def took(self, packet: bytes, from_clients: bool, target: int, now: float) -> None:
        if packet[0] >> 4 != 4:
            return
        client = packet[15] if from_clients else packet[19]
        for at in self.way(client, "up" if from_clients else "down").due(now, len(packet)):
            self.count += 1
            heapq.heappush(self.heap, (at, self.count, target, packet))

    def release(self, now: float) -> None:
        while self.heap and self.heap[0][0] <= now:
            target, packet = heapq.heappop(self.heap)[2:]
            with contextlib.suppress(OSError):
                os.write(target, packet)


def open_tun(name: str) -> int:
    device = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TUN | IFF_NO_PI))
    os.set_blocking(device, False)
    return device


def forward(line: Line, server: int, clients: int) -> None:
    """Until standard input ends."""
    while True:
        now = time.monotonic()
        wait_s = max(0.0, line.heap[0][0] - now) if line.heap else 60.0
        ready = select.select([server, clients, 0], [], [], wait_s)[0]
        now = time.monotonic()
        if 0 in ready and not os.read(0, 1):
            return
        for device, target in ((server, clients), (clients, server)):
            while device in ready:
                try:
                    line.took(os.read(device, PACKET_NBYTES), device == clients, target, now)
                except BlockingIOError:
                    break
        line.release(time.monotonic())


def main() -> None:
    config: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text())
    with contextlib.suppress(OSError, AttributeError):
        # Late packets would be measured as a slow network.
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(10))
    server, clients = open_tun(config["server"]), open_tun(config["clients"])
    print("ready", flush=True)
    forward(Line(config["conditions"], config["seed"]), server, clients)


if __name__ == "__main__":
    main()
