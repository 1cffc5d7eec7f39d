"""Which machines would hold which layers of a model: a person's words in, the planner's descriptions and answer out.

Reads a model's configuration, never its weights. Machines are described in a file (the `fleet` of `medley whatif`), or
it is this one, measured. Raises UserError for whatever cannot be planned.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medley.models.presets import is_preset, preset
from medley.policies.devices import Device
from medley.policies.pipeline.describe import Link, Links, Machine, ModelShape, Times
from medley.protocol.conditions import goodput_bytes_per_s, path
from medley.protocol.errors import UserError, did_you_mean, first_line

if TYPE_CHECKING:
    from medley.runtimes.simulated.setup import Machine as FleetMachine

FORMATS = ("bf16", "fp32", "int8", "int4")
KEPT_FREE = 0.2  # of a machine's memory, for its owner
PASS_S = 100e-6  # calls of one layer's modules, whatever their size
ENDLESS_BYTES_PER_S = 1e12  # of a link that nothing limits
LOCAL = Link(30e-6, 2e9)  # between processes of one machine


@dataclass(frozen=True, slots=True)
class Subject:
    """A model in a format: its configuration for building, its sizes for planning."""

    config: Any
    weights: str
    shape: ModelShape
    layer_parameters: int
    head_parameters: int


def subject(model: str, weights: str) -> Subject:
    """MODEL is a preset, a job, a directory or a hub name (of which only the configuration is fetched)."""
    from medley.models.dtype import NAMES
    from medley.models.quantise import linear_nbytes
    from medley.models.slices import config_of_preset, sizes

    if weights not in FORMATS:
        raise UserError(f"--weights '{weights}' is unknown; {did_you_mean(weights, FORMATS)}")
    config = config_of_preset(preset(model)) if is_preset(model) else _stored_config(model)
    small = weights in ("int8", "int4")
    dtype = NAMES["bf16" if small else weights]
    told = sizes(config, dtype, partial(linear_nbytes, kind=weights) if small else None)
    exact = sizes(config, NAMES["fp32"])
    name = model if is_preset(model) else Path(model).name
    shape = ModelShape(
        f"{name} in {weights}", told.layers, told.layer_nbytes, told.embedding_nbytes, told.head_nbytes,
        told.kv_nbytes, told.wire_nbytes, told.tied,
    )  # fmt: skip
    return Subject(config, weights, shape, exact.layer_nbytes // 4, exact.head_nbytes // 4)


def _stored_config(model: str) -> Any:
    from medley.jobs.home import home
    from medley.models.slices import config_of_directory
    from medley.serving.resolve import HUB_NAME, find_export

    found = find_export(model, home()) or Path(model).expanduser()
    if (found / "config.json").is_file():
        return config_of_directory(found)
    if found.is_dir() or "/" not in model or not HUB_NAME.fullmatch(model):
        raise UserError(f"'{model}' is no preset, no job, no directory with a config.json and no hub name")
    return _hub_config(model)


def _hub_config(model: str) -> Any:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    from medley.models.slices import config_of_directory

    try:
        return config_of_directory(Path(hf_hub_download(model, "config.json")).parent)
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise UserError(f"'{model}' is no job and no directory here, and as a hub name: {first_line(error)}") from error


# -- machines -----------------------------------------------------------------------------------------------------


def read_machines(file: Path, model: Subject) -> tuple[tuple[Machine, ...], Links]:
    """Of a fleet file: machines that work, at the speed of their described devices, and links between them."""
    from medley.jobs.machines import read_fleet
    from medley.policies.costs import Size

    parameters = model.shape.layers * model.layer_parameters + model.head_parameters
    fleet = [m for m in read_fleet(file, lambda device: Size(parameters)).machines if m.worker]
    known = {(a.name, b.name): _link(a, b) for i, a in enumerate(fleet) for b in fleet[i + 1 :]}
    return tuple(_described(m.name, m.device, m.slowness, model) for m in fleet), Links(LOCAL, known)


def _described(name: str, device: Device, slowness: float, model: Subject) -> Machine:
    layer = partial(_pass_s, device, slowness, model.layer_parameters, model.shape.layer_nbytes)
    head = partial(_pass_s, device, slowness, model.head_parameters, model.shape.head_nbytes)
    memory = int(device.memory_bytes * (1 - KEPT_FREE))
    return Machine(name, memory, Times(layer(1), layer(8), layer(256)), Times(head(1), head(8), head(1)))


def _pass_s(device: Device, slowness: float, parameters: int, nbytes: int, tokens: int) -> float:
    """Weights are read once, and multiplied by each token: whichever takes longer."""
    return slowness * (PASS_S + max(nbytes / device.memory_bytes_per_s, 2 * parameters * tokens / device.flops_per_s))


def _link(one: FleetMachine, other: FleetMachine) -> Link:
    between = path(one.conditions, other.conditions)
    rate = min(goodput_bytes_per_s(between, "up"), goodput_bytes_per_s(between, "down"))
    return Link(max(between.rtt_ms / 1e3, LOCAL.rtt_s), min(rate, ENDLESS_BYTES_PER_S))


def this_machine(model: Subject) -> Machine:
    """This machine as it is now: a real layer and a real head, timed; free memory less a fifth."""
    from medley.engines.stage_measure import measure
    from medley.models.dtype import NAMES
    from medley.models.memory import available_nbytes
    from medley.models.quantise import quantiser
    from medley.runtimes.clock import SystemClock

    free = available_nbytes()
    need = 2 * (model.layer_parameters + model.head_parameters) * 4
    if need > free:
        raise UserError(f"one layer and the head of {model.shape.name} need {need >> 20} MiB to be measured here")
    small = model.weights in ("int8", "int4")
    dtype = NAMES["bf16" if small else model.weights]
    seen = measure(model.config, dtype, quantiser(model.weights) if small else None, SystemClock().now_ns)
    return Machine("this machine", int(free * (1 - KEPT_FREE)), Times(*seen.layer_s), Times(*seen.head_s))


def parts(shape: ModelShape, machines: Sequence[Machine]) -> str:
    """The first line of an answer: what is planned, on what."""
    gib = shape.nbytes / (1 << 30)
    return f"{shape.name}: {shape.layers} layers, {gib:.1f} GiB, on {len(machines)} machine{'s' * (len(machines) != 1)}"
