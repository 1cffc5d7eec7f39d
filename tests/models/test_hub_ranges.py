"""Tensors of a hub model by byte ranges, from a hub on loopback: the right bytes, few of them, no belief in lies."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tests.models.hub_setup import REVISION, Answer, Hub, hub_of

from medley.models import remote_weights
from medley.models.hub_ranges import HubRanges
from medley.models.weightfiles import INDEX, SINGLE
from medley.protocol.errors import UserError

FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
ONE = {"model.embed.weight": torch.randn(400, 100), "model.norm.weight": torch.randn(7).to(torch.bfloat16)}
TWO = {"model.head.weight": torch.randn(300, 50)}


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    save_file(ONE, tmp_path / FIRST)
    save_file(TWO, tmp_path / SECOND)
    holders = {**dict.fromkeys(ONE, FIRST), **dict.fromkeys(TWO, SECOND)}
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": holders}))
    with hub_of(tmp_path) as server:
        yield server


@pytest.fixture
def weights(hub: Hub) -> Iterator[HubRanges]:
    made = HubRanges.open("some/model", hub.url)
    yield made
    made.close()


def test_a_tensor_costs_its_own_bytes_and_a_header(hub: Hub, weights: HubRanges) -> None:
    stored = weights.find("nobody", "model.norm.weight")
    assert torch.equal(weights.read(stored, torch.bfloat16), ONE["model.norm.weight"])
    assert torch.equal(weights.read(stored, torch.float32), ONE["model.norm.weight"].float())
    assert hub.sent < 2000
    assert SECOND not in hub.asked


def test_large_tensors_come_in_pieces(weights: HubRanges, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_weights, "PIECE_NBYTES", 10_000)
    for name, tensor in {**ONE, **TWO}.items():
        assert torch.equal(weights.read(weights.find(name), tensor.dtype), tensor)
    assert {name: stored.shape for name, stored in weights.manifest().items()} == {
        name: tuple(tensor.shape) for name, tensor in {**ONE, **TWO}.items()
    }


def test_a_model_in_one_file_needs_no_index(hub: Hub, tmp_path: Path) -> None:
    save_file({**ONE, **TWO}, tmp_path / SINGLE)
    weights = HubRanges.open("some/model", hub.url)
    assert torch.equal(weights.read(weights.find("model.head.weight"), torch.float32), TWO["model.head.weight"])
    assert INDEX not in hub.asked
    weights.close()


def test_all_is_of_the_revision_that_the_first_answer_named(hub: Hub, weights: HubRanges) -> None:
    weights.manifest()
    assert hub.revisions == {"main", REVISION}
    hub.revisions.clear()
    mark = weights.fingerprint()
    weights.read(weights.find("model.head.weight"), torch.float32)
    assert hub.revisions == {REVISION}
    again = HubRanges.open("some/model", hub.url)
    assert again.fingerprint() == mark
    again.close()


def test_a_connection_that_breaks_off_goes_on_where_it_was(hub: Hub, weights: HubRanges) -> None:
    stored = weights.find("model.embed.weight")
    breaks = iter([100, 5000, 60_000])

    def twist(answer: Answer, content: bytes) -> bool:
        begin, end = answer.range()
        count = next(breaks, None)
        if count is None:
            return False
        answer.answer(206, content[begin : begin + count], f"bytes {begin}-{end - 1}/{len(content)}", end - begin)
        answer.close_connection = True
        return True

    hub.twist, hub.sent = twist, 0
    assert torch.equal(weights.read(stored, torch.float32), ONE["model.embed.weight"])
    assert hub.sent == stored.nbytes, "no byte twice"


def test_a_hub_that_is_overloaded_for_a_moment_is_asked_again(hub: Hub, weights: HubRanges) -> None:
    stored, moments = weights.find("model.norm.weight"), iter([503, 502])

    def twist(answer: Answer, content: bytes) -> bool:
        status = next(moments, 0)
        if status:
            answer.answer(status, b"not now")
        return bool(status)

    hub.twist = twist
    assert torch.equal(weights.read(stored, torch.bfloat16), ONE["model.norm.weight"])


def whole_file(answer: Answer, content: bytes) -> None:
    answer.answer(200, content)


def another_range(answer: Answer, content: bytes) -> None:
    begin, end = answer.range()
    answer.answer(206, content[begin:end], f"bytes {begin + 1}-{end}/{len(content)}")


def another_file(answer: Answer, content: bytes) -> None:
    begin, end = answer.range()
    answer.answer(206, content[begin:end], f"bytes {begin}-{end - 1}/{len(content) + 1}")


def too_much(answer: Answer, content: bytes) -> None:
    begin, end = answer.range()
    answer.answer(206, content[begin:end] + b"more", f"bytes {begin}-{end - 1}/{len(content)}")


def too_little(answer: Answer, content: bytes) -> None:
    begin, end = answer.range()
    answer.answer(206, b"", f"bytes {begin}-{end - 1}/{len(content)}")


def no_range(answer: Answer, content: bytes) -> None:
    answer.answer(206, content[:8])


def forbidden(answer: Answer, content: bytes) -> None:
    answer.answer(403, b"")


@pytest.mark.parametrize(
    ("lie", "words"),
    [
        (whole_file, "answers 200"),
        (another_range, "another range"),
        (another_file, "changed on the hub"),
        (too_much, "more of"),
        (too_little, "too short"),
        (no_range, "another range"),
        (forbidden, "answers 403"),
    ],
)
def test_a_lie_is_not_believed(hub: Hub, weights: HubRanges, lie: Callable[[Answer, bytes], None], words: str) -> None:
    stored = weights.find("model.norm.weight")

    def twist(answer: Answer, content: bytes) -> bool:
        lie(answer, content)
        return True

    hub.twist = twist
    with pytest.raises(UserError, match=words):
        weights.read(stored, torch.bfloat16)


def test_a_header_that_breaks_a_rule_is_a_sentence(hub: Hub, weights: HubRanges, tmp_path: Path) -> None:
    (tmp_path / SECOND).write_bytes((2**40).to_bytes(8, "little") + b"{}" * 100)
    with pytest.raises(UserError, match="its header claims"):
        weights.find("model.head.weight")


def test_a_file_or_a_model_that_is_missing_is_a_sentence(hub: Hub, weights: HubRanges, tmp_path: Path) -> None:
    (tmp_path / SECOND).unlink()
    with pytest.raises(UserError, match="of the index is missing"):
        weights.find("model.head.weight")
    (tmp_path / INDEX).unlink()
    with pytest.raises(UserError, match="no weights in safetensors format"):
        HubRanges.open("some/model", hub.url)


def test_a_hub_that_is_not_there_is_a_sentence() -> None:
    with pytest.raises(UserError, match="does not give"):
        HubRanges.open("some/model", "http://127.0.0.1:1")
