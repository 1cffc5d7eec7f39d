"""From MODEL and a pool to a running pipeline: what is served, in which format, by which machines, from which files.

Reads the model's configuration and tokenizer here; weights leave this machine tensor by tensor, for the stages that
hold them. An adapter is merged into its base first, once. Raises UserError for whatever cannot be served so.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from medley.engines.wording import Wording, load_words
from medley.jobs.planning import LOCAL, Subject, subject
from medley.models.described import Described
from medley.policies.pipeline.describe import Link, Links, Objective, Wanted
from medley.protocol.errors import UserError
from medley.protocol.messages import Address
from medley.protocol.stages.words import WireType
from medley.roles.front.front import Front
from medley.roles.front.planning import FrontOptions, read_pins
from medley.roles.front.request import BLOCK
from medley.serving.front_host import Place
from medley.serving.guessing import open_guessing
from medley.serving.pipelined import Pipelined
from medley.serving.weights_keeper import WeightsKeeper
from medley.serving.weights_source import WeightsSource, open_source

if TYPE_CHECKING:
    from medley.transports.control.operator import OperatorClient

FAR = Link(1e-3, 100e6)  # between machines of a local network, until they are measured
SMALL = ("int8", "int4")


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """What a person asks for. `weights`: bf16, fp32, int8 or int4; `local`: all stages are processes here.

    `draft_model`: a smaller one of the same vocabulary, which guesses; "": drafts come from the text alone.
    """

    weights: str = "bf16"
    objective: Objective = "latency"
    pins: str = ""
    kv_tokens: int = 8 * 2048
    survive: int = 0
    draft: bool = True
    draft_model: str = ""
    machines: tuple[str, ...] = ()
    expected: int = 1
    priority: int = 0
    wire: str = "auto"
    threads: int = 0
    local: bool = False


@dataclass(frozen=True, slots=True)
class Served:
    name: str
    words: Wording
    engine: Pipelined


def open_pipelined(
    model: str, options: ServeOptions, host: str, encrypt: bool, operator: Callable[[], OperatorClient]
) -> Served:
    """MODEL over the machines of a pool; `host` is where stages reach this process."""
    source = open_source(model, whole=options.local)
    of = subject(str(source.directory), options.weights)
    check_pins(options.pins, of)
    words = within(load_words(source.directory, source.name), options.kv_tokens)
    links = Links(LOCAL if options.local else FAR)
    wanted = Wanted(options.objective, options.kv_tokens)
    plain = model_text(source, options.weights)
    wire = wire_of(options)
    dtype = "fp32" if options.weights == "fp32" else "auto"
    guessing = open_guessing(options.draft_model, words, dtype, options.kv_tokens) if options.draft_model else None

    def make(front: Address) -> Front:
        given = FrontOptions(plain, of.shape, wanted, front, links, wire, options.pins, options.survive)
        narrow = options.wire == "auto"
        more = replace(given, expected=options.expected, reach=not options.local, narrow=narrow)
        return Front(replace(more, guesses=guessing is not None))

    place = Place(source.name, host, encrypt, options.machines, options.priority, options.threads, options.local)
    keeper = WeightsKeeper(source.stock, source.fingerprint)
    engine = Pipelined(words, place, make, keeper, operator, options.draft, guessing)
    return Served(source.name, words, engine)


def within(words: Wording, kv_tokens: int) -> Wording:
    """No context longer than the KV that stages keep room for: who leaves `max_tokens` out asks for all of it."""
    return replace(words, context=min(words.context, kv_tokens // BLOCK * BLOCK))


def model_text(source: WeightsSource, weights: str) -> str:
    """What every stage is told of the model (`protocol.stages.words.Load`)."""
    config = json.loads((source.directory / "config.json").read_text(encoding="utf-8"))
    small = weights in SMALL
    told = Described(
        source.name,
        source.fingerprint,
        config,
        weights if small else "none",  # type: ignore[arg-type]
        "bf16" if small else weights,  # type: ignore[arg-type]
        source.path,
    )
    return told.text()


def wire_of(options: ServeOptions) -> WireType:
    """Hidden states travel as they are computed. With `auto` the front may narrow bf16, where a link is too slow."""
    match options.wire:
        case "fp32" | "bf16" | "int8":
            return options.wire  # type: ignore[return-value]
        case "auto":
            return "fp32" if options.weights == "fp32" else "bf16"
    raise UserError(f"--wire '{options.wire}' is unknown; allowed: auto, fp32, bf16, int8")


def check_pins(pins: str, of: Subject) -> None:
    """Raises UserError for pins whose layers are not the model's."""
    for parts in read_pins(pins) if pins else []:
        total = parts[-1].end
        if total != of.shape.layers:
            names = ", ".join(part.machine for part in parts)
            raise UserError(f"--pin gives {total} layers to {names}, but {of.shape.name} has {of.shape.layers}")


def even_pins(names: list[str], layers: int) -> str:
    """Layers in equal shares, the first machines one more."""
    if len(names) > layers:
        raise UserError(f"{len(names)} stages are more than the model's {layers} layers")
    share, more = divmod(layers, len(names))
    return ",".join(f"{name}={share + (place < more)}" for place, name in enumerate(names))
