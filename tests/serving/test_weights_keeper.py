"""Weights that a stage fetches from the front, over two real planes: the same numbers, and nothing else is given."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from medley.models import remote_weights
from medley.models.described import Described
from medley.models.remote_weights import RemoteTensors, decode_manifest, encode_manifest, filled, piece_of
from medley.models.weightfiles import Stored, WeightFiles, directory_files
from medley.protocol.errors import MedleyError, PeerError, UserError
from medley.protocol.messages import Address
from medley.runtimes.children.plane import encode_key
from medley.runtimes.children.stage_weights import RemoteWeights
from medley.serving.weights_keeper import LENT, WeightsKeeper
from medley.transports.tensors import Curve, Header, Kind, Peer, Refuse, Refused, Source, TensorPlane

WEIGHTS = {
    "model.embed_tokens.weight": torch.randn(1000, 33),
    "model.layers.0.weight": torch.randn(7, 5).to(torch.bfloat16),
    "model.layers.0.scale": torch.tensor(2.5),
    "model.layers.1.mask": torch.tensor([True, False, True]),
}
WHAT = Described("m", "mark", {}, "none", "bf16")


@pytest.fixture
def files(tmp_path: Path) -> WeightFiles:
    save_file(WEIGHTS, tmp_path / "model.safetensors")
    return WeightFiles.open(directory_files(tmp_path))


@pytest.fixture
def pieces(monkeypatch: pytest.MonkeyPatch) -> int:
    """So small that a tensor has many."""
    monkeypatch.setattr(remote_weights, "PIECE_NBYTES", 1000)
    return 1000


@asynccontextmanager
async def front(keeper: WeightsKeeper) -> AsyncIterator[tuple[RemoteTensors, TensorPlane, Peer]]:
    """What a stage sees of it."""
    ours, theirs = Curve.generate(), Curve.generate()
    async with (
        await TensorPlane.open("127.0.0.1", identity=theirs, allow=ours.public_key.__eq__, handler=keeper) as serving,
        await TensorPlane.open("127.0.0.1", identity=ours, handler=keeper) as plane,
    ):
        remote = RemoteWeights("job")
        remote.reached(plane, asyncio.get_running_loop())
        remote.front = Address(serving.endpoint, encode_key(theirs.public_key))
        tensors = remote.tensors(WHAT)
        assert isinstance(tensors, RemoteTensors)
        yield tensors, plane, Peer(serving.endpoint, theirs.public_key)


def read_all(tensors: RemoteTensors, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    found = {name: tensors.find("nobody", name) for name in WEIGHTS}
    return {name: tensors.read(stored, dtype or stored.dtype) for name, stored in found.items()}


async def test_every_tensor_arrives_as_it_is_stored(files: WeightFiles, pieces: int) -> None:
    async with front(WeightsKeeper(files, "mark")) as (tensors, _, _):
        arrived = await asyncio.to_thread(read_all, tensors)
    for name, tensor in WEIGHTS.items():
        assert arrived[name].dtype == tensor.dtype
        assert torch.equal(arrived[name], tensor)


async def test_a_tensor_is_converted_piece_by_piece(files: WeightFiles, pieces: int) -> None:
    async with front(WeightsKeeper(files, "mark")) as (tensors, _, _):
        arrived = await asyncio.to_thread(read_all, tensors, torch.bfloat16)
    for name, tensor in WEIGHTS.items():
        assert torch.equal(arrived[name], tensor.to(torch.bfloat16))


async def test_other_weights_than_the_announced_ones_are_not_loaded(files: WeightFiles) -> None:
    async with front(WeightsKeeper(files, "another mark")) as (tensors, _, _):
        with pytest.raises(UserError, match="other ones"):
            await asyncio.to_thread(tensors.find, "model.layers.0.weight")


async def test_a_missing_tensor_is_named(files: WeightFiles) -> None:
    async with front(WeightsKeeper(files, "mark")) as (tensors, _, _):
        with pytest.raises(UserError, match=r"no tensor 'model\.x'"):
            await asyncio.to_thread(tensors.find, "model.x", "x")


async def test_what_is_not_a_weight_is_refused_with_a_sentence(files: WeightFiles) -> None:
    async with front(WeightsKeeper(files, "mark")) as (_, plane, peer):

        async def refused(header: Header) -> str:
            with pytest.raises(Refused) as told:
                await plane.get(peer, header, bytearray)
            return str(told.value)

        assert "not a pull" in await refused(Header(kind=Kind.PULL, run="r", name="manifest"))
        assert "not '../config.json'" in await refused(Header(kind=Kind.ARTIFACT, run="r", name="../config.json"))
        assert "no tensor '../../x'" in await refused(Header(kind=Kind.ARTIFACT, run="r", name="tensor/../../x"))
        some = "tensor/model.layers.0.weight"
        assert "no piece 1" in await refused(Header(kind=Kind.ARTIFACT, run="r", name=some, sequence=1))
        assert "no piece" in await refused(Header(kind=Kind.ARTIFACT, run="r", name=some, sequence=2**63 - 1))
        offer = Header(kind=Kind.ARTIFACT, run="r", name="x", nbytes=1)
        with pytest.raises(Refused, match="takes no objects"):
            await plane.put(peer, offer, [b"x"])


async def test_a_file_that_became_shorter_is_a_refusal_and_the_front_lives(files: WeightFiles, tmp_path: Path) -> None:
    async with front(WeightsKeeper(files, "mark")) as (tensors, plane, peer):
        stored = await asyncio.to_thread(tensors.find, "model.embed_tokens.weight")
        with open(tmp_path / "model.safetensors", "r+b") as file:
            file.truncate(600)
        for _ in range(LENT + 2):
            with pytest.raises(Refused, match="became shorter"):
                await asyncio.to_thread(tensors.read, stored, torch.float32)
        assert await plane.get(peer, Header(kind=Kind.ARTIFACT, run="r", name="manifest"), bytearray)


async def test_few_pieces_are_in_memory_at_a_time(files: WeightFiles) -> None:
    keeper = WeightsKeeper(files, "mark")
    header = Header(kind=Kind.ARTIFACT, run="r", name="tensor/model.layers.0.weight")
    lent: list[Source] = []

    async def borrow() -> None:
        source = await keeper.asked(b"", header)
        assert isinstance(source, Source)
        lent.append(source)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(LENT + 1):
            waiting = tasks.create_task(borrow())
        while len(lent) < LENT:
            await asyncio.to_thread(int)
        assert len(lent) == LENT
        assert not waiting.done()
        assert lent[0].release is not None
        lent[0].release()
    assert len(lent) == LENT + 1
    assert isinstance(await keeper.asked(b"", Header(kind=Kind.ARTIFACT, run="r", name="tensor/x")), Refuse)


# -- a front that lies ------------------------------------------------------------------------------------------------


class Liar:
    """A supplier of anything."""

    def __init__(self, content: bytes) -> None:
        self.content = content

    def manifest(self, most_nbytes: int) -> bytes:
        return self.content

    def piece(self, name: str, number: int, into: memoryview) -> None:
        raise AssertionError("nothing is fetched")


@pytest.mark.parametrize(
    "tensors",
    [
        {"a": {"dtype": "F32", "shape": [2, 2], "nbytes": 17}},
        {"a": {"dtype": "F99", "shape": [2, 2], "nbytes": 16}},
        {"a": {"dtype": "F32", "shape": [-2, -2], "nbytes": 16}},
        {"a": {"dtype": "F32", "shape": [1] * 9, "nbytes": 4}},
        {"a" * 241: {"dtype": "F32", "shape": [1], "nbytes": 4}},
        {"a": {"dtype": "F32", "shape": [1], "nbytes": 4, "code": "x"}},
        {"a": 1},
        [],
    ],
)
def test_a_manifest_that_breaks_a_rule_is_not_believed(tensors: object) -> None:
    content = msgspec.json.encode({"fingerprint": "mark", "tensors": tensors})
    with pytest.raises(UserError, match="no list"):
        RemoteTensors(Liar(content), "mark").find("a")
    with pytest.raises(UserError, match="no list"):
        decode_manifest(b"\xff" + content)


async def test_a_piece_of_another_size_than_the_manifest_says_is_refused(files: WeightFiles) -> None:
    keeper = WeightsKeeper(files, "mark")
    async with front(keeper) as (tensors, _, _):
        stored = await asyncio.to_thread(tensors.find, "model.layers.0.weight")
        keeper._tensors[stored.name] = Stored(stored.name, stored.dtype, (7, 4))
        with pytest.raises(PeerError, match="writable bytes"):
            await asyncio.to_thread(tensors.read, stored, stored.dtype)


async def test_a_manifest_without_end_is_refused_before_it_is_received(
    files: WeightFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_weights, "MAX_MANIFEST_NBYTES", 100)
    async with front(WeightsKeeper(files, "mark")) as (tensors, _, _):
        with pytest.raises(MedleyError, match="over 100"):
            await asyncio.to_thread(tensors.find, "model.layers.0.weight")


def test_only_what_was_found_can_be_read() -> None:
    content = encode_manifest("mark", {"a": Stored("a", torch.float32, (2,))})
    with pytest.raises(UserError, match="none of these"):
        RemoteTensors(Liar(content), "mark").read(Stored("a", torch.float32, (2_000_000_000,)), torch.float32)


def test_pieces_cover_a_tensor_exactly(pieces: int) -> None:
    stored = Stored("a", torch.float64, (401,))
    asked = []
    filled(stored, torch.float32, lambda number, view: asked.append((number, view.nbytes)))
    assert asked == [(n, piece_of(stored, n)[1]) for n in range(4)]
    assert sum(nbytes for _, nbytes in asked) == stored.nbytes
