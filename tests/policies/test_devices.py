"""Described devices: the library is sane, and a person's own figures become one."""

import pytest

from medley.policies.devices import DEVICES, GIB, described, device
from medley.protocol.errors import UserError


def test_the_library_reaches_from_a_phone_to_an_h200_and_says_where_each_figure_is_from() -> None:
    assert len(DEVICES) >= 12
    for kind, one in DEVICES.items():
        assert one.kind == kind
        assert one.flops_per_s > 1e9 and one.memory_bytes >= 4 * GIB and one.memory_bytes_per_s > 1e9
        assert one.watts > one.idle_watts >= 0 and one.usd_per_h >= 0
        assert "%" in one.source and len(one.source) > 40
    assert DEVICES["phone-snapdragon-8-gen-3"].flops_per_s < DEVICES["h200"].flops_per_s / 1000


def test_a_misspelt_kind_is_answered_with_the_nearest() -> None:
    with pytest.raises(UserError, match="no device 'rtx-4080'; did you mean 'rtx-4090'"):
        device("rtx-4080")
    with pytest.raises(UserError, match="machine 3: there is no device 'h20'"):
        described("h20", "machine 3")


def test_figures_of_ones_own() -> None:
    mine = described({"gflops": 150, "memory_gib": 4, "memory_gb_per_s": 20, "watts": 30, "precision": "bf16"})
    assert (mine.flops_per_s, mine.memory_bytes, mine.memory_bytes_per_s) == (150e9, 4 * GIB, 20e9)
    assert (mine.watts, mine.precision, mine.source) == (30, "bf16", "described by its owner")


def test_a_known_kind_with_one_figure_replaced() -> None:
    mine = described({"kind": "rtx-4090", "usd_per_h": 0})
    assert mine.usd_per_h == 0 and mine.flops_per_s == device("rtx-4090").flops_per_s


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ({}, "neither kind nor gflops"),
        ({"gflops": -1}, "gflops is -1, but must be above 0"),
        ({"gflops": 0}, "above 0"),
        ({"gflops": "fast"}, "but must be a number"),
        ({"gflops": float("nan")}, "but must be a number"),
        ({"gflops": 1, "wats": 3}, "no key 'wats'; did you mean 'watts'"),
        ({"kind": "t5"}, "no device 't5'"),
        ({"gflops": 1, "precision": "int4"}, "must be fp32 or bf16"),
        (7, "must be the name of a device"),
    ],
)
def test_what_cannot_be_a_device_is_one_sentence(data: object, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        described(data)  # type: ignore[arg-type]
