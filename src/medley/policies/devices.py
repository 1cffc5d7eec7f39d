"""Described devices: what a machine can do, for planning and simulation. Figures are what training reaches, not data
sheets: `flops_per_s` is sustained in a Transformer's matrix products at the precision that the device trains in.

Every figure is an approximation, and its `source` says of what: the data sheet's peak and the fraction of it that is
assumed, or a benchmark in words. Real machines differ by their cooling, their memory modules and their batch. Whoever
knows a machine better describes it (`described`); a measured tokens/s beats both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from medley.protocol.errors import UserError, did_you_mean

GB = 1_000_000_000
GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Device:
    """One kind of machine. `source` says where the figures come from."""

    kind: str
    flops_per_s: float  # sustained, in training
    memory_bytes: int
    memory_bytes_per_s: float
    watts: float  # under load
    idle_watts: float
    usd_per_h: float  # typical price where it can be rented; 0 for what a group owns
    source: str
    precision: Literal["fp32", "bf16"] = "fp32"  # what `model.dtype: auto` computes in there
    tokens_at_once: int = 2048  # one pass over the weights each (`engines.memory`)
    host_bytes_per_s: float = 0.0  # of the memory beside an accelerator, where updates are kept; 0: it has none


# Updates on their way to and from a card, and through a codec: one thread, fresh memory; measured beside an H200.
_HOST_BYTES_PER_S = 3e9
_CARDS = ("rtx-3060", "rtx-4090", "t4", "l4", "a10g", "a100-80g", "h100-sxm", "h200")


def _device(
    kind: str, gflops: float, precision: Literal["fp32", "bf16"], memory_gib: float, gb_per_s: float,
    watts: tuple[float, float], usd_per_h: float, source: str,
) -> Device:  # fmt: skip
    load, idle = watts
    memory = int(memory_gib * GIB)
    made = Device(kind, gflops * 1e9, memory, gb_per_s * GB, load, idle, usd_per_h, source, precision)
    return replace(made, tokens_at_once=32_768, host_bytes_per_s=_HOST_BYTES_PER_S) if kind in _CARDS else made


_KNOWN = (
    _device(
        "phone-snapdragon-8-gen-3", 60, "fp32", 12, 77, (6, 0.5), 0,
        "1x Cortex-X4, 5x A720, 2x A520: about 340 GFLOP/s of NEON fp32 at full clock; 18 % of it, for it throttles "
        "within minutes; LPDDR5X-9600, 64 bit; 6 W is what a phone gives off for long",
    ),
    _device(
        "raspberry-pi-5", 38, "fp32", 8, 17, (9, 3), 0,
        "4x Cortex-A76 at 2.4 GHz, 16 FLOP a cycle: 154 GFLOP/s; 25 % of it; LPDDR4X-4267, 32 bit",
    ),
    _device(
        "laptop-i5-8250u", 120, "fp32", 8, 38, (25, 5), 0,
        "4 cores with AVX2 at 2.4 GHz for long, 32 FLOP a cycle: 307 GFLOP/s; 40 % of it; DDR4-2400, two channels",
    ),
    _device(
        "laptop-i7-11800h", 300, "fp32", 16, 51, (60, 10), 0,
        "8 cores with AVX-512 at 3.0 GHz, 32 FLOP a cycle: 768 GFLOP/s; 40 % of it; DDR4-3200, two channels",
    ),
    _device(
        "apple-m2", 600, "fp32", 16, 100, (20, 3), 0,
        "its processor alone, which is what Medley trains on there: about 1.5 TFLOP/s of fp32 products through "
        "Accelerate; 40 % of it; 100 GB/s by the data sheet",
    ),
    _device(
        "apple-m4", 800, "fp32", 16, 120, (25, 3), 0,
        "its processor alone: 2.0 TFLOP/s of fp32 SME products (Remke and Breuer 2024, 'Hello SME'); 40 % of it; "
        "120 GB/s by the data sheet",
    ),
    _device(
        "desktop-ryzen-7950x", 1100, "fp32", 32, 83, (230, 45), 0,
        "16 cores with AVX-512 in two halves at 4.5 GHz, 32 FLOP a cycle: 2.3 TFLOP/s; 48 % of it; DDR5-5200; the "
        "whole machine's power",
    ),
    _device(
        "cloud-2vcpu", 90, "fp32", 8, 20, (15, 5), 0.09,
        "two virtual processors of a Zen 4 server: 'medley doctor' measures 120 to 200 GFLOP/s of fp32 products; "
        "about 60 % of it in training; power is the share of a server's",
    ),
    _device(
        "server-xeon-amx", 6000, "bf16", 32, 60, (120, 40), 0.71,
        "8 cores of a Sapphire Rapids Xeon with AMX at 2.4 GHz, 2,048 bf16 FLOP a cycle: 39 TFLOP/s; 15 % of it, for "
        "tiles are seldom full; price of a c7i.4xlarge",
    ),
    _device(
        "rtx-3060", 10_000, "bf16", 12, 360, (250, 45), 0,
        "25.6 TFLOP/s of dense bf16 with fp32 sums by the data sheet; 40 % of it; 170 W of card, the rest its machine",
    ),
    _device(
        "rtx-4090", 66_000, "bf16", 24, 1008, (550, 70), 0.45,
        "165 TFLOP/s of dense bf16 with fp32 sums by the data sheet; 40 % of it; 450 W of card, the rest its machine; "
        "price on rental markets",
    ),
    _device(
        "t4", 4900, "fp32", 16, 320, (110, 40), 0.53,
        "8.1 TFLOP/s of fp32 by the data sheet (it computes no bf16); 60 % of it; 70 W of card; price of a g4dn.xlarge",
    ),
    _device(
        "l4", 36_000, "bf16", 24, 300, (115, 45), 0.80,
        "121 TFLOP/s of dense bf16 by the data sheet; 30 % of it, for 72 W hold it back; price of a g6.xlarge",
    ),
    _device(
        "a10g", 28_000, "bf16", 24, 600, (350, 70), 1.01,
        "70 TFLOP/s of dense bf16 by the cloud's data sheet; 40 % of it; 300 W of card; price of a g5.xlarge",
    ),
    _device(
        "a100-80g", 140_000, "bf16", 80, 2039, (600, 120), 1.80,
        "312 TFLOP/s of dense bf16 by the data sheet; 45 % of it, as published training runs reach; 400 W of card; "
        "price on rental markets",
    ),
    _device(
        "h100-sxm", 395_000, "bf16", 80, 3350, (1000, 180), 3.00,
        "989 TFLOP/s of dense bf16 by the data sheet; 40 % of it, as published training runs reach; 700 W of card; "
        "price on rental markets",
    ),
    _device(
        "h200", 395_000, "bf16", 141, 4800, (1000, 180), 3.80,
        "989 TFLOP/s of dense bf16 by the data sheet; 40 % of it, which Medley's engine was seen to reach with 1.1 B "
        "parameters (19 % with 145 M, 9 % with 5 M); 700 W of card; price on rental markets",
    ),
)  # fmt: skip
DEVICES: dict[str, Device] = {device.kind: device for device in _KNOWN}

# What a person may write of a device, and the unit of each in ours.
_KEYS: dict[str, tuple[str, float]] = {
    "gflops": ("flops_per_s", 1e9),
    "memory_gib": ("memory_bytes", GIB),
    "memory_gb_per_s": ("memory_bytes_per_s", GB),
    "watts": ("watts", 1),
    "idle_watts": ("idle_watts", 1),
    "usd_per_h": ("usd_per_h", 1),
}
_POSITIVE = ("gflops", "memory_gib", "memory_gb_per_s")
_PLAIN = Device("described", 100e9, 8 * GIB, 20e9, 30, 5, 0, "described by its owner")


def device(kind: str) -> Device:
    """A known kind by its name. Raises UserError with the nearest one."""
    if kind not in DEVICES:
        raise UserError(f"there is no device '{kind}'; {did_you_mean(kind, DEVICES)}")
    return DEVICES[kind]


def described(data: str | Mapping[str, Any], where: str = "device") -> Device:
    """A kind's name, or figures of a person's own: gflops (sustained, required without `kind`), memory_gib,
    memory_gb_per_s, watts, idle_watts, usd_per_h, precision; with `kind`, they replace those of that kind.

    `where` begins the sentence of the UserError it raises.
    """
    if isinstance(data, str):
        if data not in DEVICES:
            raise UserError(f"{where}: there is no device '{data}'; {did_you_mean(data, DEVICES)}")
        return DEVICES[data]
    if not isinstance(data, Mapping):
        raise UserError(f"{where} is {data!r}, but must be the name of a device or a group such as 'gflops: 150'")
    if "kind" in data and str(data["kind"]) in DEVICES:
        made = DEVICES[str(data["kind"])]
    elif "kind" in data and "gflops" not in data:
        raise UserError(
            f"{where}.kind: there is no device '{data['kind']}'; {did_you_mean(str(data['kind']), DEVICES)}"
        )
    elif "gflops" not in data:
        raise UserError(f"{where} has neither kind nor gflops: name a known device, or say how fast this one trains")
    else:
        made = replace(_PLAIN, kind=str(data.get("kind", "described")))
    return _with_figures(made, data, where)


def _with_figures(made: Device, data: Mapping[str, Any], where: str) -> Device:
    changed: dict[str, Any] = {}
    for key, value in data.items():
        if key == "kind":
            continue
        if key == "precision":
            if value not in ("fp32", "bf16"):
                raise UserError(f"{where}.precision is {value!r}, but must be fp32 or bf16")
            changed["precision"] = value
        elif key in _KEYS:
            name, unit = _KEYS[key]
            changed[name] = _figure(value, key, where) * unit
        else:
            allowed = ("kind", "precision", *_KEYS)
            raise UserError(f"{where} has no key '{key}'; {did_you_mean(str(key), allowed)}")
    if "memory_bytes" in changed:
        changed["memory_bytes"] = int(changed["memory_bytes"])
    return replace(made, **changed, source="described by its owner") if changed else made


def _figure(value: Any, key: str, where: str) -> float:
    positive = key in _POSITIVE
    if isinstance(value, bool) or not isinstance(value, int | float) or not value < 1e12:
        raise UserError(f"{where}.{key} is {value!r}, but must be a number")
    if value < 0 or (positive and value == 0):
        raise UserError(f"{where}.{key} is {value:g}, but must be {'above 0' if positive else 'at least 0'}")
    return float(value)
