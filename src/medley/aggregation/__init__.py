"""Rules that make one update of many, known here by name; importing this loads no torch.

`mean` and `sum` are one kernel, a weighted sum in member order: the coordinator writes into the commit
weights that add up to one for `mean` and that do not for `sum`, so shards need not know how many answer
tokens anyone had.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from medley.protocol.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from medley.aggregation.rule import Rule

RULE_NAMES = ("mean", "sum")


def make_rule(name: str) -> Rule:
    """The rule of that name. Raises UserError for a name that is none of RULE_NAMES."""
    if name not in RULE_NAMES:
        raise UserError(f"train.aggregation: '{name}' is no rule; {did_you_mean(name, RULE_NAMES)}")
    from medley.aggregation.mean import WeightedSum

    return WeightedSum()
