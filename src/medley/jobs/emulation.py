"""An emulated link in a person's words: what it is, what a stream gets through it, and what crossing it cost."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from pathlib import Path

from medley.protocol.conditions import Conditions, Network, goodput_bytes_per_s, network_problems, preset
from medley.protocol.errors import UserError
from medley.runtimes.shaped import read_moved

MBIT_NBYTES = 125_000


@dataclass(frozen=True, slots=True)
class Crossed:
    """Bytes that went over emulated links, of all machines together: from them, and to them."""

    up_nbytes: int
    down_nbytes: int


def network_named(profile: str) -> Network:
    """The network of a command's `--network`. Raises UserError for an unknown preset."""
    network = Network(profile, machines="all")
    for sentence in network_problems(network):
        raise UserError(sentence.replace("network.profile", "--network", 1))
    return network


def crossed(nodes: Path) -> Crossed:
    """What crossed the links of the nodes whose directories lie there."""
    moved = [read_moved(room) for room in nodes.iterdir()] if nodes.is_dir() else []
    return Crossed(sum(up for up, _ in moved), sum(down for _, down in moved))


def in_words(profile: str) -> str:
    """One sentence about a preset: distance, losses, rate, outages, and the goodput of one TCP stream."""
    c = preset(profile)
    words = [f"a round trip of {c.rtt_ms:g} ms"]
    if c.jitter_ms:
        words.append(f"{c.jitter_ms:g} ms of jitter")
    if c.loss:
        words.append(f"{100 * c.loss:g} % of packets lost")
    if c.duplication:
        words.append(f"{100 * c.duplication:g} % sent twice")
    if c.up_bytes_per_s:
        words.append(f"{c.up_bytes_per_s / MBIT_NBYTES:g} Mbit/s each way")
    if c.down_s:
        words.append(f"{c.up_s:g} s up and {c.down_s:g} s down in turn")
    slower = f"; it computes {c.compute_factor:g} times slower than it could" if c.compute_factor != 1 else ""
    return f"'{profile}': {', '.join(words)}; one TCP stream gets {rate(goodput(c))} through it{slower}"


def goodput(conditions: Conditions) -> float:
    return min(goodput_bytes_per_s(conditions, "up"), goodput_bytes_per_s(conditions, "down"))


def rate(bytes_per_s: float) -> str:
    return "as much as the machine can send" if bytes_per_s == inf else f"about {size(bytes_per_s)}/s"


def size(nbytes: float) -> str:
    """Bytes with three figures, in powers of ten, as links are sold."""
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if nbytes >= unit:
            return f"{nbytes / unit:.3g} {name}"
    return f"{nbytes:.0f} bytes"
