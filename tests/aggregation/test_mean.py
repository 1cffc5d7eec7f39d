"""The weighted sum: in member order, one member in memory at a time."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from medley.aggregation import RULE_NAMES, make_rule
from medley.aggregation.rule import Member
from medley.protocol.errors import UserError


def giver(values: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda out: out.copy_(values)


def members(count: int, n: int = 1000) -> tuple[list[Member], list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    given = [torch.randn(n, generator=generator) for _ in range(count)]
    return [Member(f"u{i}", 0.1 * (i + 1), giver(x)) for i, x in enumerate(given)], given


@pytest.mark.parametrize("name", RULE_NAMES)
@pytest.mark.parametrize("count", [1, 2, 7])
def test_it_is_the_weighted_sum(name: str, count: int):
    merged, given = members(count)
    out = make_rule(name).combine(merged, torch.full((1000,), 9.0), torch.empty(1000))
    expected = sum((m.weight * x.double() for m, x in zip(merged, given, strict=True)), torch.zeros(1000))
    assert torch.allclose(out.double(), expected, atol=1e-6)


def test_the_same_order_gives_the_same_bits():
    merged, _ = members(7)
    runs = [make_rule("mean").combine(merged, torch.empty(1000), torch.empty(1000)) for _ in range(2)]
    assert torch.equal(*runs)


def test_whole_numbers_add_up_exactly():
    ones = [Member(f"u{i}", 1.0, giver(torch.eye(8)[i])) for i in range(8)]
    assert torch.equal(make_rule("sum").combine(ones, torch.empty(8), torch.empty(8)), torch.ones(8))


def test_members_are_decoded_into_two_buffers_only():
    out, room = torch.empty(10), torch.empty(10)
    places: set[int] = set()

    def decode(into: torch.Tensor) -> torch.Tensor:
        places.add(into.data_ptr())
        return into.fill_(1.0)

    make_rule("mean").combine([Member(f"u{i}", 1.0, decode) for i in range(50)], out, room)
    assert places == {out.data_ptr(), room.data_ptr()}
    assert (out == 50).all()


def test_an_unknown_rule_is_a_persons_mistake():
    with pytest.raises(UserError, match="did you mean 'mean'"):
        make_rule("meen")
