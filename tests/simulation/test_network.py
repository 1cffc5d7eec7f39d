"""Links: shares against reckoning by hand, bytes that are neither lost nor made, outages, order."""

from __future__ import annotations

from random import Random

import pytest

from medley.protocol.conditions import MSS_NBYTES, PACKET_NBYTES, Conditions
from medley.runtimes.simulated.flows import Flow, Pipe, Sharing, fill
from medley.runtimes.simulated.kernel import MS, Kernel, S
from medley.runtimes.simulated.network import CHUNK_NBYTES, EVERYONE, STALLED_NS, Network

MB = 1_000_000
RATE = MB * PACKET_NBYTES / MSS_NBYTES  # of a link that carries a megabyte of payload a second
PLAIN = Conditions(up_bytes_per_s=RATE, down_bytes_per_s=RATE)


def flow(limit: float, *pipes: Pipe) -> Flow:
    made = Flow(pipes, 1.0, limit, lambda: None)
    for pipe in pipes:
        pipe.flows[made] = None
    return made


def rates(flows: list[Flow], *pipes: Pipe) -> list[float]:
    fill(flows, pipes)
    return [f.rate for f in flows]


def test_two_flows_of_one_pipe_have_halves() -> None:
    pipe = Pipe("up", 10.0)
    assert rates([flow(100, pipe), flow(100, pipe)], pipe) == [5.0, 5.0]


def test_what_one_cannot_use_the_others_get() -> None:
    pipe = Pipe("up", 10.0)
    assert rates([flow(1, pipe), flow(100, pipe), flow(100, pipe)], pipe) == [1.0, 4.5, 4.5]


def test_max_min_over_two_pipes() -> None:
    """The example of every textbook: the long flow gets what the narrow pipe leaves it, the others the rest."""
    narrow, wide = Pipe("narrow", 6.0), Pipe("wide", 20.0)
    both, first, second, third = flow(99, narrow, wide), flow(99, narrow), flow(99, wide), flow(3, wide)
    assert rates([both, first, second, third], narrow, wide) == [3.0, 3.0, 14.0, 3.0]


def test_no_pipe_is_overfull_and_nobody_could_have_more() -> None:
    random = Random(3)
    for _ in range(200):
        pipes = [Pipe(str(i), random.uniform(1, 10)) for i in range(6)]
        flows = [flow(random.choice([0.5, 2.0, 100.0]), *random.sample(pipes, 2)) for _ in range(12)]
        fill(flows, pipes)
        for pipe in pipes:
            assert sum(f.rate for f in pipe.flows) <= pipe.bytes_per_s + 1e-9
        for one in flows:
            full = [p for p in one.pipes if sum(f.rate for f in p.flows) >= p.bytes_per_s - 1e-9]
            best = any(one.rate >= max(f.rate for f in p.flows) - 1e-9 for p in full)
            assert one.rate == one.limit or best


def test_sharing_charges_the_time_that_reckoning_by_hand_gives() -> None:
    """100 bytes alone, from second 5 beside another 100 bytes: 50 + 50 at half the rate, then 50 at the whole."""
    kernel = Kernel(1)
    sharing, pipe, done = Sharing(kernel), Pipe("up", 10.0), dict[str, float]()

    def begin(name: str) -> None:
        sharing.begin((pipe,), 100.0, 99.0, lambda: done.update({name: kernel.now / S}))

    kernel.after(0, begin, "first")
    kernel.after(5 * S, begin, "second")
    kernel.run(100 * S)
    assert done == pytest.approx({"first": 15.0, "second": 20.0}, abs=1e-6)


def test_many_flows_end_together_and_no_byte_is_lost() -> None:
    kernel = Kernel(1)
    sharing, down, ended = Sharing(kernel), Pipe("down", 1000.0), list[float]()
    ups = [Pipe(f"up {i}", 50.0) for i in range(100)]
    for i in range(100):
        kernel.after(
            i * MS, lambda i=i: sharing.begin((ups[i], down), 100.0, 1e9, lambda: ended.append(kernel.now / S))
        )
    kernel.run(100 * S)
    assert len(ended) == 100
    # 10,000 bytes through 1,000 a second, the first of them 0 to 100 ms later than the others.
    assert max(ended) == pytest.approx(10.05, abs=0.1)
    assert min(ended) > 9.5
    assert kernel.steps < 1000


def network(*names: str, conditions: Conditions = PLAIN) -> Network:
    made = Network(Kernel(1))
    for name in names:
        made.add(name, conditions)
    return made


def arrivals(net: Network, transfers: list[tuple[str, str, int]], until_s: float = 1000) -> list[tuple[float, bool]]:
    """When each ended, and whether it arrived."""
    found: list[tuple[float, bool]] = [(0.0, False)] * len(transfers)

    def note(index: int, whole: bool) -> None:
        found[index] = (net.kernel.now / S, whole)

    for index, (source, target, nbytes) in enumerate(transfers):
        net.transfer(source, target, nbytes, lambda whole, i=index: note(i, whole))
    net.kernel.run(int(until_s * S))
    return found


def test_uplink_and_downlink_of_a_machine_are_shared_and_independent() -> None:
    net = network("a", "b", "c")
    ended = arrivals(net, [("a", "b", MB), ("a", "c", MB), ("b", "a", MB)])
    assert [whole for _, whole in ended] == [True] * 3
    assert [at for at, _ in ended] == pytest.approx([2.0, 2.0, 1.0], rel=0.01)


def test_one_stream_goes_no_faster_than_tcp_lets_it() -> None:
    lossy = Conditions(rtt_ms=50, loss=0.01, up_bytes_per_s=100 * MB, down_bytes_per_s=100 * MB)
    net = network("a", "b", "c", conditions=lossy)
    (alone, _), (second, _) = arrivals(net, [("a", "b", 10 * MB), ("a", "c", 10 * MB)])
    assert 10 * MB / alone < MB, "far below the link"
    assert second == pytest.approx(alone, rel=0.05), "so two streams do not disturb each other"


def test_a_link_that_comes_and_goes_carries_its_part() -> None:
    net = network("a", "b")
    net.add("a", Conditions(up_bytes_per_s=RATE, down_bytes_per_s=RATE, up_s=5, down_s=5))
    [(at, whole)] = arrivals(net, [("a", "b", 20 * MB)])
    assert whole
    assert at == pytest.approx(40, abs=6)


def test_a_partition_stops_a_transfer_which_goes_on_from_its_last_chunk() -> None:
    net = network("a", "b")
    net.kernel.after(int(1.5 * S), net.block, "a", "b")
    net.kernel.after(int(4.5 * S), net.unblock, "a", "b")
    [(at, whole)] = arrivals(net, [("a", "b", 3 * MB)])
    again = CHUNK_NBYTES / MB  # at most one chunk is sent twice
    assert whole
    assert 6.0 <= at <= 6.0 + again


def test_a_transfer_that_stands_still_is_given_up() -> None:
    net = network("a", "b")
    net.kernel.after(S, net.block, EVERYONE, "b")
    [(at, whole)] = arrivals(net, [("a", "b", 3 * MB)])
    assert not whole
    assert at == pytest.approx(1 + STALLED_NS / S, abs=0.5)


def test_a_transfer_over_a_link_that_loses_all_but_nothing_is_given_up() -> None:
    net = network("a", "b", conditions=Conditions(rtt_ms=100, loss=0.999))
    ended = arrivals(net, [("a", "b", 3 * MB), ("a", "b", 100)])
    assert [whole for _, whole in ended] == [False, False]
    assert all(0 < at < 2 * STALLED_NS / S for at, _ in ended)


def test_a_socket_that_closes_breaks_what_moves_there_and_frees_the_link() -> None:
    net = network("a", "b")
    ended = list[tuple[float, bool]]()

    def note(whole: bool) -> None:
        ended.append((net.kernel.now / S, whole))

    net.transfer("a", "b", 10 * MB, note, ("one", "two"))
    net.transfer("a", "b", MB, note)
    net.kernel.after(S, net.end_socket, "two")
    net.kernel.run(100 * S)
    assert ended == [(1.0, False), (pytest.approx(1.5, rel=0.01), True)]


def test_messages_take_half_a_round_trip_and_lost_ones_longer() -> None:
    net = network("a", "b", conditions=Conditions(rtt_ms=40))
    assert net.delay_ns("a", "b", "task", 100) == 40 * MS
    lossy = network("a", "b", conditions=Conditions(rtt_ms=40, loss=0.3))
    delays = [lossy.delay_ns("a", "b", "task", 100) for _ in range(500)]
    prompt = sum(d == 40 * MS for d in delays) / 500
    assert prompt == pytest.approx(1 - (1 - 0.7 * 0.7), abs=0.06)
    assert max(delays) > 200 * MS


def test_classes_of_traffic_may_meet_other_conditions() -> None:
    net = network("a", "b", conditions=Conditions(rtt_ms=10))
    net.add("a", Conditions(rtt_ms=10), {"heartbeat": Conditions(rtt_ms=100)})
    assert net.delay_ns("a", "b", "task", 0) == 10 * MS
    assert net.delay_ns("a", "b", "heartbeat", 0) == 55 * MS
