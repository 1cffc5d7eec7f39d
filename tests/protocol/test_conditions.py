"""What the presets promise, what is refused, and that the stated goodput follows from loss, round trip and rate."""

from __future__ import annotations

from dataclasses import replace
from math import inf

import pytest

from medley.protocol.conditions import (
    PRESETS,
    Conditions,
    Network,
    conditions_of,
    conditions_problems,
    goodput_bytes_per_s,
    network_problems,
    path,
    preset,
)
from medley.protocol.errors import UserError


def test_no_preset_is_nonsense() -> None:
    assert [s for conditions in PRESETS.values() for s in conditions_problems(conditions)] == []
    assert {name for name, conditions in PRESETS.items() if conditions.shaped} == PRESETS.keys() - {"none"}


def test_goodput_falls_with_loss_and_distance_and_never_exceeds_the_link() -> None:
    assert goodput_bytes_per_s(Conditions()) == inf
    rates = [goodput_bytes_per_s(PRESETS[name]) for name in ("good", "cellular", "satellite", "degraded")]
    assert rates == sorted(rates, reverse=True)
    for conditions in PRESETS.values():
        assert goodput_bytes_per_s(conditions) <= (conditions.up_bytes_per_s or inf)
    assert goodput_bytes_per_s(replace(PRESETS["brownout"], down_s=0)) > goodput_bytes_per_s(PRESETS["brownout"])


def test_a_slow_direction_limits_only_itself() -> None:
    lopsided = Conditions(20, up_bytes_per_s=1000, down_bytes_per_s=9000)
    assert goodput_bytes_per_s(lopsided, "down") == 9 * goodput_bytes_per_s(lopsided, "up")


def test_two_machines_meet_both_links() -> None:
    here, there = Conditions(80, 40, 0.02, 0, 10, 20), Conditions(20, 30, 0.01, 0, 5, 15)
    both = path(here, there)
    assert (both.rtt_ms, both.jitter_ms, both.up_bytes_per_s, both.down_bytes_per_s) == (100, 50, 10, 5)
    assert both.loss == pytest.approx(0.0298)
    assert path(here, Conditions()) == here
    assert path(Conditions(), here).up_bytes_per_s == 20


def test_names_are_looked_up_with_the_nearest_right_word() -> None:
    with pytest.raises(UserError, match="'celular'; did you mean 'cellular'"):
        preset("celular")
    assert list(network_problems(Network("sattelite"))) == [
        "network.profile is 'sattelite', which is no preset; did you mean 'satellite'?"
    ]
    assert "did you mean 'ps_sync'?" in next(network_problems(Network(overrides={"pssync": "good"})))
    assert "network.overrides.task is 'bad'" in next(network_problems(Network(overrides={"task": "bad"})))


def test_an_override_replaces_the_profile_for_its_class_only() -> None:
    network = Network("cellular", {"heartbeat": "none"})
    assert conditions_of(network, "heartbeat") == Conditions()
    assert conditions_of(network, "ps_sync") == PRESETS["cellular"]
    assert not Network("none", {"task": "none"}).shaped


@pytest.mark.parametrize(
    ("wrong", "begins"),
    [
        (Conditions(rtt_ms=-1), "rtt_ms is -1"),
        (Conditions(20, up_bytes_per_s=float("nan")), "up_bytes_per_s is nan"),
        (Conditions(20, loss=1.0), "loss is 1, but must be a fraction"),
        (Conditions(20, duplication=-0.1), "duplication is -0.1"),
        (Conditions(jitter_ms=3), "jitter_ms is 3, but rtt_ms is 0"),
        (Conditions(20, down_s=2), "down_s is 2, but up_s is 0"),
        (Conditions(20, compute_factor=0), "compute_factor is 0"),
    ],
)
def test_values_that_no_link_can_have_are_refused_with_a_sentence(wrong: Conditions, begins: str) -> None:
    (sentence,) = conditions_problems(wrong)
    assert sentence.startswith(begins)
