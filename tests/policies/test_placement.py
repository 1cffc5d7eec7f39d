"""Where parameters live: bounded loads, few moves, keys together, backups elsewhere."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from medley.policies.placement import SLACK, Host, assign_blocks, choose_hosts
from medley.protocol.layout import Block, TensorSpec, make_layout


def blocks_of(count: int, size: int = 100) -> tuple[Block, ...]:
    return make_layout([TensorSpec(f"t{i}", (size,)) for i in range(count)], size).blocks


@given(st.integers(0, 200), st.integers(1, 9))
def test_every_block_has_one_shard_and_no_shard_too_many(count: int, shards: int) -> None:
    blocks = blocks_of(count)
    owned = assign_blocks(blocks, dict.fromkeys(range(shards), 1.0))
    assert sorted(i for indices in owned.values() for i in indices) == list(range(count))
    limit = (1 + SLACK) * count / shards + 1 + 1 / shards
    assert all(len(indices) <= limit for indices in owned.values())


@given(st.integers(1, 5))
def test_a_shard_that_comes_moves_few_blocks(shards: int) -> None:
    blocks = blocks_of(400)
    before = assign_blocks(blocks, dict.fromkeys(range(shards), 1.0))
    after = assign_blocks(blocks, dict.fromkeys(range(shards + 1), 1.0))
    home = {i: s for s, indices in before.items() for i in indices}
    moved = sum(home[i] != s for s, indices in after.items() for i in indices)
    assert moved <= 2.5 * len(blocks) / (shards + 1)


def test_a_larger_machine_holds_more() -> None:
    owned = assign_blocks(blocks_of(400), {0: 3.0, 1: 1.0})
    assert 2 <= len(owned[0]) / len(owned[1]) <= 4


@given(st.integers(1, 30), st.integers(1, 6))
def test_both_halves_of_an_adapter_share_a_shard(adapters: int, shards: int) -> None:
    specs = [TensorSpec(f"{i}.{half}", (40,), f"adapter{i}") for i in range(adapters) for half in "AB"]
    layout = make_layout(specs, 16)
    owned = assign_blocks(layout.blocks, dict.fromkeys(range(shards), 1.0))
    home = {i: s for s, indices in owned.items() for i in indices}
    for adapter in range(adapters):
        assert len({home[b.index] for b in layout.blocks if b.placement_key == f"adapter{adapter}"}) == 1


@given(st.integers(1, 6), st.integers(1, 5), st.integers(1, 2), st.data())
def test_hosts(hosts: int, shards: int, replication: int, data: st.DataObject) -> None:
    pool = [Host(f"n{i}", 2**30, data.draw(st.booleans()), 0) for i in range(hosts)]
    decision = choose_hosts(pool, shards, replication, {})
    if hosts < replication:
        assert decision.plan is None
        assert "machines must hold parameters" in decision.reason
        return
    assert decision.plan is not None
    load = dict.fromkeys([h.node for h in pool], 0)
    for primary, backup in decision.plan.values():
        assert primary != backup
        assert bool(backup) == (replication == 2)
        for node in filter(None, (primary, backup)):
            load[node] += 1
    assert max(load.values()) - min(load.values()) <= 1


def test_hosts_that_live_keep_their_shards() -> None:
    pool = [Host(n, 2**30, False, 0) for n in ("a", "b", "c")]
    decision = choose_hosts(pool, 2, 2, {0: ("a", "gone"), 1: ("gone", "b")})
    assert decision.plan is not None
    assert decision.plan[0][0] == "a" and decision.plan[0][1] in ("b", "c")
    assert decision.plan[1][1] == "b" and decision.plan[1][0] in ("a", "c")


def test_machines_that_do_not_train_come_first() -> None:
    decision = choose_hosts([Host("a", 2**33, True, 0), Host("b", 2**30, False, 0)], 1, 1, {})
    assert decision.plan == {0: ("b", "")}


def test_who_keeps_a_later_shard_is_not_idle() -> None:
    """A new backup goes to the machine that holds nothing, not to the one with more memory and another shard."""
    pool = [Host("a", 2**33, False, 0), Host("b", 2**33, False, 0), Host("c", 2**30, False, 0)]
    decision = choose_hosts(pool, 2, 2, {0: ("a", ""), 1: ("b", "a")})
    assert decision.plan == {0: ("a", "c"), 1: ("b", "a")}
