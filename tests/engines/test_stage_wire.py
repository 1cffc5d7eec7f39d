"""Hidden states, tokens, keys and values come out of their bytes as they went in; a body of another size is refused."""

from __future__ import annotations

import pytest
import torch

from medley.engines.sampling import Sampling
from medley.engines.stage_refusals import Refused
from medley.engines.stage_wire import (
    decode_hidden,
    decode_kv,
    decode_tokens,
    encode_hidden,
    encode_kv,
    encode_tokens,
    sampling_of,
)
from medley.protocol.messages import Address
from medley.protocol.stages.words import Opening, Pass, Row, Shadow, WireType, body_nbytes


def joined(buffers: list[memoryview], before: int = 0) -> memoryview:
    """Behind a word of any length: on no boundary."""
    return memoryview(b"x" * before + b"".join(buffers))[before:]


@pytest.mark.parametrize("wire", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_hidden_states_arrive_as_near_as_the_wire_allows(wire: WireType, dtype: torch.dtype) -> None:
    hidden = (torch.randn(5, 24, generator=torch.Generator().manual_seed(1)) * 3).to(dtype)
    hidden[3] = 0
    body = joined(encode_hidden(hidden, wire), before=3)
    row = Row(1, 0, 5, 0)
    assert body.nbytes == body_nbytes(Pass(1, 1, 1, (row,), (), (), wire, 24, ()))
    back = decode_hidden(body, 5, 24, wire, dtype)
    assert back.dtype == dtype
    if wire == "int8":
        step = hidden.float().abs().amax(1, keepdim=True) / 127
        assert ((back.float() - hidden.float()).abs() <= 0.51 * step + 0.005 * hidden.float().abs()).all()
    else:
        assert torch.equal(back, hidden.bfloat16().to(dtype) if wire == "bf16" else hidden)
    for wrong in (body[:-1], body[:0]):
        with pytest.raises(Refused, match="bytes"):
            decode_hidden(wrong, 5, 24, wire, dtype)


def test_hidden_states_in_the_wires_type_are_not_copied() -> None:
    hidden = torch.zeros(2, 4, dtype=torch.bfloat16)
    (buffer,) = encode_hidden(hidden, "bf16")
    hidden[1, 3] = 1
    assert bytes(buffer)[-2:] == b"\x80\x3f"


def test_tokens_arrive_whatever_their_number() -> None:
    tokens = [0, 7, 31_999, (1 << 32) - 1]
    assert decode_tokens(joined(encode_tokens(tokens), before=1), 4).tolist() == tokens
    with pytest.raises(Refused):
        decode_tokens(joined(encode_tokens(tokens)), 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_keys_and_values_arrive_as_they_were(dtype: torch.dtype) -> None:
    kv = torch.randn(3, 2, 2, 7, 4).to(dtype)
    wire, buffers = encode_kv(kv)

    def shadow(first: int = 1, end: int = 4, count: int = 7, wire: WireType = wire) -> Shadow:
        return Shadow(Address("", ""), 5, first, end, 0, count, groups=2, width=4, wire=wire)

    word = shadow()
    assert torch.equal(decode_kv(word, joined(buffers, before=1)), kv)
    with pytest.raises(Refused, match="bytes"):
        decode_kv(shadow(count=8), joined(buffers))
    with pytest.raises(Refused, match="sizes"):
        decode_kv(shadow(4, 1), joined(buffers))
    with pytest.raises(Refused, match="int8"):
        decode_kv(shadow(wire="int8"), joined(buffers))


def test_an_opening_says_how_its_tokens_are_drawn() -> None:
    assert sampling_of(Opening(4, 0.7, 0.9, 5, 11, 2, -1, 0, 0)) == Sampling(
        temperature=0.7, top_p=0.9, top_k=5, seed=11, choice=2
    )
    assert sampling_of(Opening(4, 0.0, 1.0, 0, 0, 0, 3, 0, 0)).logprobs == 3
