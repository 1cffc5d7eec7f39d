"""What the model of TCP promises: bytes are delivered once, slow start, time-outs, outages; and the goodput stated."""

from __future__ import annotations

from dataclasses import replace
from math import inf
from random import Random

import pytest

from medley.policies.tcp import MSS_NBYTES, Stream, steady_bytes_per_s, stream, transfer_s
from medley.protocol.conditions import PRESETS, Conditions, goodput_bytes_per_s

CLEAN = Conditions(rtt_ms=100)
LOSSY = ("cellular", "degraded", "brownout", "satellite")


def opened(conditions: Conditions, seed: int = 0) -> tuple[Stream, float]:
    sender = stream(conditions, "up", Random(seed))
    return sender, sender.handshake_s(0.0)


def test_slow_start_takes_a_round_trip_for_each_doubling() -> None:
    sender, ready_s = opened(CLEAN)
    assert ready_s == pytest.approx(0.1)
    assert transfer_s(sender, ready_s, 10 * MSS_NBYTES) == pytest.approx(0.05)
    sender, ready_s = opened(CLEAN)
    assert transfer_s(sender, ready_s, 70 * MSS_NBYTES) == pytest.approx(0.25)  # 10, 20, 40


def test_what_fits_into_the_window_does_not_wait_for_what_went_before() -> None:
    sender, now_s = opened(CLEAN)
    for _ in range(5):
        flight = sender.flight(now_s, 100)
        assert (flight.nbytes, flight.again_s) == (100, now_s)
        now_s += 0.001


@pytest.mark.parametrize("name", PRESETS)
def test_every_byte_arrives_once_and_in_time_that_only_grows(name: str) -> None:
    sender, at_s = opened(PRESETS[name], seed=3)
    left = 300_000
    while left:
        flight = sender.flight(at_s, left)
        assert 0 <= flight.nbytes <= left
        assert flight.again_s >= at_s and flight.arrives_s >= at_s
        assert flight.nbytes or flight.again_s > at_s, "neither bytes nor time: it would never end"
        at_s, left = flight.again_s, left - flight.nbytes


def test_a_lost_packet_alone_costs_a_time_out_and_never_bytes() -> None:
    always = replace(CLEAN, loss=0.3)
    times = [transfer_s(*opened(always, seed), 100) for seed in range(400)]
    quick = [t for t in times if t < 0.1]
    assert 0.6 < len(quick) / len(times) < 0.8
    assert min(t for t in times if t > 0.1) > 0.3  # round trip and 200 ms, at least
    assert max(times) > 1.0  # and twice that again


def test_a_stream_waits_for_its_time_out_after_an_outage() -> None:
    sender = stream(Conditions(rtt_ms=100, up_s=5, down_s=2), "up", Random(0), phase_s=5.0)
    took_s = transfer_s(sender, 0.0, 100)
    assert 2.0 < took_s < 5.0


def test_a_cut_way_carries_nothing_until_it_is_mended() -> None:
    sender, now_s = opened(CLEAN)
    sender._way.cut = True
    flight = sender.flight(now_s, 100)
    assert flight.nbytes == 0 and flight.again_s >= now_s + 0.3
    sender._way.cut = False
    assert sender.flight(flight.again_s, 100).nbytes == 100


def test_a_partition_of_days_is_waited_for() -> None:
    sender, now_s = opened(CLEAN)
    sender._way.cut = True
    for _ in range(2000):
        now_s = sender.flight(now_s, 100).again_s
    sender._way.cut = False
    assert sender.flight(now_s, 100).nbytes == 100


def test_a_link_that_lets_next_to_nothing_through_is_never_through_with_much() -> None:
    hopeless = replace(CLEAN, loss=0.999)
    took_s = transfer_s(*opened(hopeless), 10**6, lambda: steady_bytes_per_s(hopeless, "up"))
    assert took_s == inf


def test_two_streams_share_what_the_link_carries() -> None:
    slow = Conditions(rtt_ms=20, up_bytes_per_s=100_000)
    alone, now_s = opened(slow)
    one_s = transfer_s(alone, now_s, 200_000)
    first, _ = opened(slow)
    second, _ = opened(slow)
    second._way = first._way
    left = {first: 200_000, second: 200_000}
    at = dict.fromkeys(left, now_s)
    while any(left.values()):
        sender = min((s for s in left if left[s]), key=lambda s: at[s])
        flight = sender.flight(at[sender], left[sender])
        left[sender] -= flight.nbytes
        at[sender] = flight.again_s
    assert max(at.values()) - now_s == pytest.approx(2 * one_s, rel=0.2)


@pytest.mark.parametrize("name", LOSSY)
def test_the_stated_goodput_is_of_the_size_that_the_model_reaches(name: str) -> None:
    stated, reached = goodput_bytes_per_s(PRESETS[name]), steady_bytes_per_s(PRESETS[name], "up")
    assert 0.5 < reached / stated < 2.0


def test_a_long_rest_goes_at_the_steady_rate_and_costs_no_more_to_reckon() -> None:
    conditions = PRESETS["cellular"]
    rate = steady_bytes_per_s(conditions, "up")
    sender, now_s = opened(conditions)
    assert transfer_s(sender, now_s, 1 << 32, lambda: rate) == pytest.approx((1 << 32) / rate, rel=0.01)


def test_the_same_seed_takes_the_same_time() -> None:
    conditions = PRESETS["degraded"]
    assert transfer_s(*opened(conditions, 7), 500_000) == transfer_s(*opened(conditions, 7), 500_000)
    assert transfer_s(*opened(conditions, 7), 500_000) != transfer_s(*opened(conditions, 8), 500_000)
