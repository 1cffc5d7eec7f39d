"""A layout by hand: "desktop=14,laptop=8", pipelines of replicas apart by "/". Checked before it is believed."""

from __future__ import annotations

from collections import Counter

from medley.policies.pipeline.describe import Layout, layout_of
from medley.policies.pipeline.ground import Ground
from medley.protocol.errors import UserError, did_you_mean


def read_pins(ground: Ground, text: str) -> Layout:
    """The layout. Raises UserError: unknown machine, not a number, a sum that is not the model's layers, no room."""
    number = {m.name: i for i, m in enumerate(ground.machines)}
    replicas = tuple(tuple(_pair(one, number) for one in part.split(",")) for part in text.split("/"))
    twice = [name for name, times in Counter(name for one in replicas for name, _ in one).items() if times > 1]
    if twice:
        raise UserError(f"--pin names '{twice[0]}' twice; a machine holds one stage")
    for one in replicas:
        total = sum(layers for _, layers in one)
        if total != ground.model.layers:
            raise UserError(
                f"--pin gives {total} layers to {', '.join(name for name, _ in one)}, "
                f"but {ground.model.name} has {ground.model.layers}"
            )
        for place, (name, layers) in enumerate(one):
            room = ground.cap(number[name], place == 0, place == len(one) - 1)
            if layers > room:
                raise UserError(f"--pin gives {layers} layers to {name}, whose memory holds {room} in that place")
    return layout_of(replicas)


def _pair(text: str, number: dict[str, int]) -> tuple[str, int]:
    name, equals, layers = text.strip().rpartition("=")
    if not equals or not layers.strip().isdecimal() or not 1 <= int(layers) <= 1 << 16:
        raise UserError(f"--pin '{text.strip()}' is not MACHINE=LAYERS, as in desktop=14,laptop=8")
    if name.strip() not in number:
        raise UserError(f"--pin names '{name.strip()}', which is no machine here; {did_you_mean(name.strip(), number)}")
    return name.strip(), int(layers)
