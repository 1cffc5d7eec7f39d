"""Every limit on the way of a job's parameters, met before the job computes anything."""

from __future__ import annotations

import re

import pytest

from medley.jobs.check import _RANGES
from medley.policies.bounds import BLOCK_ELEMENTS_MAX, BLOCKS_A_SHARD, PART_NBYTES, SHARDS_MAX, refusal
from medley.protocol.layout import TensorSpec, make_layout
from medley.protocol.wire import MAX_ITEMS
from medley.store.tensorfile import MAX_TENSORS
from medley.transports.tensors.contract import Limits


def model(millions: int) -> list[TensorSpec]:
    return [TensorSpec(f"layer.{i}", (1_000_000,)) for i in range(millions)]


def said(tensors: list[TensorSpec], block_elements: int, shards: int) -> str:
    return refusal(make_layout(tensors, block_elements), block_elements, shards)


def test_the_limits_agree_with_those_they_stand_for() -> None:
    largest = {key: high for key, _, _, high, _ in _RANGES}
    assert 4 * BLOCKS_A_SHARD <= MAX_TENSORS
    assert BLOCKS_A_SHARD <= MAX_ITEMS
    assert Limits().object_nbytes >= PART_NBYTES
    assert largest["placement.shards"] == SHARDS_MAX
    assert largest["placement.block_elements"] == BLOCK_ELEMENTS_MAX


def test_what_fits_is_not_refused() -> None:
    assert said(model(160), 1_048_576, 1) == ""
    assert said(model(20), 8192, 1) == ""


def test_too_many_blocks_say_both_values_that_would_do_and_both_do() -> None:
    sentence = said(model(20), 1024, 2)
    assert sentence.startswith("placement.block_elements is 1024, which cuts the parameters into 19540 blocks")
    larger = re.search(r"set placement.block_elements to (\d+)", sentence)
    more = re.search(r"or placement.shards to (\d+)", sentence)
    assert larger and more
    assert said(model(20), int(larger[1]), 2) == ""
    assert said(model(20), 1024, int(more[1])) == ""


@pytest.mark.parametrize("shards", [1, 2])
def test_a_shard_too_large_to_send_says_how_many_would_do(shards: int) -> None:
    sentence = said(model(2000), 1_048_576, shards)
    assert f"placement.shards is {shards}, so a shard's checkpoint has" in sentence
    enough = re.search(r"set placement.shards to (\d+)", sentence)
    assert enough
    assert said(model(2000), 1_048_576, int(enough[1])) == ""


def test_where_nothing_would_do_adapters_might() -> None:
    assert "model.lora.rank" in said(model(80_000), 1 << 28, 64)
