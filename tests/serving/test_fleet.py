"""From a person's words to what a pipeline is made of."""

from __future__ import annotations

import pytest
from tests.serving.conftest import byte_tokenizer

from medley.engines.wording import Wording
from medley.protocol.errors import UserError
from medley.serving.fleet import even_pins, within


@pytest.mark.parametrize(
    ("context", "kv_tokens", "served"),
    [(512, 16384, 512), (32768, 16384, 16384), (32768, 1000, 768), (512, 256, 256)],
)
def test_a_context_is_never_longer_than_the_room_for_it(context: int, kv_tokens: int, served: int) -> None:
    """In whole blocks: a request without `max_tokens` can reach the end of the context, and must have room."""
    words = Wording(byte_tokenizer(), "tiny", context, 258, frozenset([1]))
    assert within(words, kv_tokens).context == served


def test_layers_are_shared_evenly_and_no_stage_is_empty() -> None:
    assert even_pins(["a", "b", "c"], 8) == "a=3,b=3,c=2"
    with pytest.raises(UserError, match="3 stages are more than the model's 2 layers"):
        even_pins(["a", "b", "c"], 2)
