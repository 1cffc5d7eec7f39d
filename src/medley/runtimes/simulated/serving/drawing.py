"""What the serving of a seed consists of: a small model, a few machines, and a dozen clients. Always the same."""

from __future__ import annotations

from dataclasses import replace
from random import Random

from medley.policies.pipeline.describe import Link, Links, Machine, ModelShape, Wanted
from medley.protocol.conditions import Conditions
from medley.protocol.stages.events import Asked
from medley.runtimes.simulated.kernel import MS, S
from medley.runtimes.simulated.serving.setup import Client, Host, ServingSetup, even
from medley.runtimes.simulated.serving.text import CIRCLE, END, POISON

MIB = 1 << 20
RTT_MS = (0.2, 2.0, 20.0, 100.0)
GUESSED = 4  # every so-manieth seed has a draft model


def draw_serving(seed: int) -> ServingSetup:
    random = Random(f"{seed} serving")
    layers, count = random.randint(3, 6), random.randint(2, 5)
    shape = ModelShape("toy", layers, MIB, MIB, MIB, 64, 64)
    wanted = Wanted(
        random.choice(("latency", "throughput")),
        kv_tokens=256 * random.choice((1, 2, 4, 8)),
        process_nbytes=0,
    )
    rtt_ms = random.choice(RTT_MS)
    hosts = _hosts(random, count, shape, wanted, rtt_ms)
    return ServingSetup(
        shape,
        hosts,
        tuple(_client(random, number, wanted.kv_tokens) for number in range(1, random.randint(6, 14))),
        wanted,
        pins=_pins(random, hosts, layers) if random.random() < 0.4 else "",
        survive=int(random.random() < 0.5),
        expected=random.randint(1, count),
        front=Conditions(rtt_ms=rtt_ms),
        links=Links(Link(rtt_ms / 1000, 1e9)),
        bits=random.random() < 0.5,
        guesses=seed % GUESSED == 0,
        boot_ns=random.choice((100 * MS, 600 * MS)),
    )


def _hosts(random: Random, count: int, shape: ModelShape, wanted: Wanted, rtt_ms: float) -> tuple[Host, ...]:
    """Half of the worlds have machines that hold two thirds of the model at most."""
    each = shape.layer_nbytes + wanted.kv_tokens * shape.kv_nbytes
    tight = random.random() < 0.5
    memory = each * max(2, 2 * shape.layers // 3) + 2 * MIB if tight else 1 << 40
    return tuple(
        Host(
            even(f"n{i}", random.choice((0.002, 0.002, 0.008)), memory),
            Conditions(rtt_ms=rtt_ms),
            load_bytes_per_s=random.choice((5e6, 5e7)),
            joins_ns=int(random.choice((0, 0, 10)) * S * random.random()) if i else 0,
        )
        for i in range(count)
    )


def _pins(random: Random, hosts: tuple[Host, ...], layers: int) -> str:
    stages = random.randint(1, min(3, len(hosts), layers))
    counts = [layers // stages + (1 if i < layers % stages else 0) for i in range(stages)]
    names = [host.name for host in random.sample(hosts, stages)]
    return ",".join(f"{name}={count}" for name, count in zip(names, counts, strict=True))


def _client(random: Random, number: int, kv_tokens: int) -> Client:
    sampled = random.random() < 0.4
    asked = Asked(
        number,
        _prompt(random),
        random.choice((1, 8, 30, 60, 120)),
        frozenset({END}) if random.random() < 0.3 else frozenset(),
        temperature=1.0 if sampled else 0.0,
        seed=POISON if random.random() < 0.03 else random.randint(0, 3),
        choice=random.randint(0, 1),
        draft=random.random() < 0.8,
    )
    if len(asked.prompt) + asked.limit > kv_tokens and random.random() < 0.7:
        asked = replace(asked, prompt=asked.prompt[:32])
    leaves_ns = int(4 * S * random.random()) if random.random() < 0.15 else 0
    return Client(int(random.choice((3, 10, 25)) * S * random.random()), asked, leaves_ns)


def _prompt(random: Random) -> tuple[int, ...]:
    """Some begin alike, so that one may begin as a copy of another; some are long, so that they go in parts."""
    kind = random.random()
    if kind < 0.4:
        return tuple(random.randint(0, CIRCLE) for _ in range(random.randint(1, 20)))
    shared = Random(f"{random.randint(0, 1)} beginning")
    length = random.choice((40, 60, 300)) if kind < 0.55 else random.choice((34, 40, 50))
    alike = tuple(shared.randint(1, CIRCLE) for _ in range(length))
    return (*alike, *(random.randint(1, CIRCLE) for _ in range(random.randint(0, 3))))


__all__ = ["Machine", "draw_serving"]
