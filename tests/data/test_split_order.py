"""Groups stay together, and every machine computes the same order."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from medley.data.examples import Example
from medley.data.order import epoch_order, samples_at
from medley.data.split import split
from medley.protocol.errors import UserError


def examples(groups: int, each: int = 3) -> list[Example]:
    return [Example(f"{g}/{i}", f"group {g}", "q", "a") for g in range(groups) for i in range(each)]


def test_no_group_is_on_both_sides_and_nothing_is_lost() -> None:
    every = examples(200)
    train, held = split(every, 0.1, seed=3)
    assert not {e.group for e in train} & {e.group for e in held}
    assert len(train) + len(held) == len(every)
    assert 8 <= len({e.group for e in held}) <= 36


def test_more_data_moves_no_group() -> None:
    held = {e.group for e in split(examples(100), 0.1, seed=0)[1]}
    more = {e.group for e in split(examples(150), 0.1, seed=0)[1]}
    assert held <= more


def test_at_least_one_group_is_held_out_and_one_is_trained() -> None:
    train, held = split(examples(2), 0.0001, seed=0)
    assert train and held
    assert split(examples(1), 0.5, seed=0)[1] == []
    assert split(examples(9), 0.0, seed=0)[1] == []


def test_kept_groups_are_trained() -> None:
    every = examples(30)
    kept = {f"group {g}" for g in range(29)}
    assert {e.group for e in split(every, 0.5, seed=0, keep=kept)[1]} == {"group 29"}


def test_a_fraction_of_everything_is_refused() -> None:
    with pytest.raises(UserError, match="heldout_fraction is 1.0"):
        split(examples(3), 1.0, seed=0)


def test_an_epoch_is_a_permutation_and_epochs_and_seeds_differ() -> None:
    order = epoch_order(1000, 1, 0)
    assert sorted(order.tolist()) == list(range(1000))
    assert not np.array_equal(order, epoch_order(1000, 1, 1))
    assert not np.array_equal(order, epoch_order(1000, 2, 0))
    assert samples_at(1000, 1, 0, 10, 20).tolist() == order[10:20].tolist()
    assert not order.flags.writeable


def test_another_process_computes_the_same_order() -> None:
    code = "from medley.data.order import epoch_order; print(epoch_order(50, 7, 3).tolist())"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == str(epoch_order(50, 7, 3).tolist())


def test_the_order_is_pinned() -> None:
    # A change of this line would make a resumed job see samples twice.
    assert epoch_order(10, 0, 0).tolist() == PINNED


PINNED = [0, 2, 9, 1, 8, 5, 4, 3, 6, 7]
