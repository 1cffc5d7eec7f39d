"""Durations, bytes, memory, energy and price against numbers reckoned by hand, and bytes against the codecs."""

import pytest

from medley.compression import make_codec
from medley.policies import costs
from medley.policies.costs import Size
from medley.policies.devices import Device, device
from medley.protocol.spec import Compression, Optimizer, Outer, Sync, Train

# One GFLOP/s, one GB/s: seconds are FLOP or bytes over 1e9.
SLOW = Device("slow", 1e9, 1 << 30, 1e9, 100, 10, 2.0, "made up")
FAST = Device("fast", 1e15, 1 << 30, 1e15, 100, 10, 2.0, "made up")
TRAIN = Train()
MODEL = Size(1_000_000, tokens_per_sample=100)


def test_a_leases_arithmetic_is_six_flop_a_parameter_and_token() -> None:
    assert costs.train_flops(MODEL, 1000) == 6e9
    # 10 samples of 100 tokens: one micro-batch; 6 s of products; walks of 24 MB at 1 GB/s and 8 MB of encoding.
    ns = costs.lease_ns(SLOW, MODEL, TRAIN, 10)
    assert ns == 6_000_000_000 + 24_000_000 + 8_000_000 + costs.LEASE_NS + costs.BATCH_NS


def test_below_adapters_a_frozen_parameter_costs_four_flop() -> None:
    assert costs.train_flops(Size(1000, 1_000_000), 10) == 6 * 1000 * 10 + 4 * 1_000_000 * 10


def test_a_straggler_takes_that_many_times_as_long() -> None:
    once = costs.lease_ns(SLOW, MODEL, TRAIN, 10)
    assert costs.lease_ns(SLOW, MODEL, TRAIN, 10, slowness=10) == 10 * once


def test_one_token_costs_as_much_memory_as_many() -> None:
    """Weights must come from memory however little is computed: 3 passes of 4 MB at 1 GB/s."""
    thin = Device("thin", 1e15, 1 << 30, 1e9, 1, 1, 0, "made up")
    tiny = Size(1_000_000, tokens_per_sample=1)
    fixed = costs.LEASE_NS + costs.BATCH_NS
    assert costs.lease_ns(thin, tiny, TRAIN, 1) - fixed == pytest.approx(12e6 + 24e6 + 8e6, rel=1e-3)


def test_on_a_machine_without_limits_only_the_fixed_price_remains() -> None:
    assert costs.lease_ns(FAST, MODEL, TRAIN, 10) == pytest.approx(costs.LEASE_NS + costs.BATCH_NS, rel=1e-2)
    # 100 samples of 100 tokens are 5 micro-batches of 2,048; four steps of 25 samples are 4 times two.
    assert costs.micro_batches(FAST, MODEL, 100) == 5
    assert costs.micro_batches(FAST, MODEL, 100, steps=4) == 8


def test_a_card_pays_for_the_way_to_the_memory_beside_it() -> None:
    """6 bytes a parameter in and out and 8 of encoding at 3 GB/s: what an H200 was measured to take, within a sixth."""
    h200, large = device("h200"), Size(1_100_048_384, tokens_per_sample=1024, compute_nbytes=2)
    host_s = 1_100_048_384 * (6 + 8) / 3e9
    products_s = costs.train_flops(large, 65_536) / h200.flops_per_s
    reckoned_s = costs.lease_ns(h200, large, TRAIN, 64) / 1e9
    assert reckoned_s == pytest.approx(products_s + host_s, rel=0.01)
    assert reckoned_s == pytest.approx(6.26, rel=1 / 6)


def test_local_steps_pay_for_their_optimiser() -> None:
    local = Train(sync=Sync(mode="local-sgd", local_steps=2))
    # Per parameter: two passes of 16 bytes, 8 for the base, and 11 fp32 walks for each AdamW step.
    extra = costs.lease_ns(SLOW, MODEL, local, 10, 2) - costs.LEASE_NS - 2 * costs.BATCH_NS
    assert extra == 6_000_000_000 + (2 * 16 + 8 + 2 * 44 + 8) * 1_000_000


def test_measuring_is_forward_only() -> None:
    assert costs.measure_ns(SLOW, MODEL, 10) == 2_000_000_000 + costs.LEASE_NS + costs.BATCH_NS // 2


@pytest.mark.parametrize("n", [1, 2, 1023, 1024, 1025, 4096, 4097, 12_345, 1 << 20])
@pytest.mark.parametrize("kind", ["none", "fp16", "int8", "topk"])
@pytest.mark.parametrize("density", [1 / 64, 0.1, 1.0])
def test_bytes_are_what_the_codecs_write(kind: str, density: float, n: int) -> None:
    options = Compression(kind=kind, density=density)  # type: ignore[arg-type]
    assert costs.block_nbytes(options, n) == make_codec(options).nbytes(n)


def test_a_part_is_the_sum_of_its_blocks() -> None:
    assert costs.push_nbytes(Compression("int8"), [1024, 10]) == 4 + 1024 + 4 + 10
    assert costs.pull_nbytes(10) == 40 and costs.pull_nbytes(10, half=True) == 20


def test_bases_travel_in_bf16_only_where_they_are_rounded_anyway() -> None:
    half = Size(10, compute_nbytes=2)
    assert costs.half_pulls(half, TRAIN)
    assert not costs.half_pulls(half, Train(sync=Sync(mode="local-sgd")))
    assert not costs.half_pulls(Size(10), TRAIN)


def test_a_commit_walks_over_its_members_and_the_optimisers_state() -> None:
    """4 members of 5 walks and AdamW's 11: 31 walks of 4 MB at 1 GB/s."""
    assert costs.apply_ns(SLOW, 1_000_000, 4, TRAIN) == 31 * 4_000_000 + costs.APPLY_NS


def test_a_checkpoint_of_adamw_is_twelve_bytes_a_parameter() -> None:
    assert costs.checkpoint_nbytes(1000, TRAIN) == 12_000
    assert costs.checkpoint_nbytes(1000, Train(optimizer=Optimizer("sgd"))) == 4000
    assert costs.checkpoint_nbytes(1000, Train(optimizer=Optimizer("sgd", momentum=0.9))) == 8000
    outer = Train(sync=Sync(mode="local-sgd"), outer=Outer("nesterov"))
    assert costs.checkpoint_nbytes(1000, outer) == 8000
    assert costs.checkpoint_ns(SLOW, 400_000_000) == 1_000_000_000


def test_memory_of_a_worker_grows_with_the_model_and_with_what_it_keeps() -> None:
    big = Size(1_000_000_000, tokens_per_sample=512)
    plain = costs.worker_nbytes(big, TRAIN)
    # weights and gradients 8, flat vectors 20, two fp32 updates in flight 8: 36 bytes a parameter and activations.
    assert plain == costs.PROCESS_NBYTES + 36 * 10**9 + costs.activation_nbytes(big, 512)
    assert costs.worker_nbytes(big, Train(sync=Sync(mode="local-sgd"))) == plain + 16 * 10**9
    frozen = Size(1_000_000, 1_000_000_000, 512)
    assert costs.worker_nbytes(frozen, TRAIN) < 7 * 2**30


def test_activations_of_the_usual_shape() -> None:
    """TinyLlama's shape follows from its size: width 2,048, 22 layers; 34 bytes in bf16."""
    got = costs.activation_nbytes(Size(1_100_000_000, compute_nbytes=2), 2048)
    assert got == pytest.approx(34 * 2048 * 22 * 2048, rel=0.05)


def test_memory_of_a_shard() -> None:
    n = 10_000_000
    # state twice (one being written), a pinned version, 3 x 2 staged parts, scratch.
    assert costs.shard_nbytes(n, TRAIN, 3) == costs.SHARD_PROCESS_NBYTES + (24 + 4 + 24) * n + (8 << 20)


def test_energy_and_price() -> None:
    hour = costs.NS_PER_H
    assert costs.energy_j(SLOW, hour // 2, hour) == pytest.approx(1800 * 100 + 1800 * 10)
    assert costs.price_usd(SLOW, hour) == 2.0
    assert costs.price_usd(SLOW, hour, spot=True) == pytest.approx(0.7)
