"""The shard engine: exactly once, consistent cuts, exact resume, and memory as it was promised."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from safetensors.torch import load_file, save_file
from torch import Tensor

from medley.compression import CODEC_NAMES, make_codec
from medley.compression.codec import bytes_of
from medley.compression.feedback import encode_update
from medley.engines.shard import ShardEngine
from medley.protocol.errors import FrameError
from medley.protocol.layout import Layout, TensorSpec, make_layout
from medley.protocol.spec import Compression, Optimizer, Outer, Sync, Train

PLAIN = Train(optimizer=Optimizer("sgd", weight_decay=0.0), aggregation="sum")
ADAMW = Train(optimizer=Optimizer("adamw", weight_decay=0.1))
LR = 0.125


def layout() -> Layout:
    shapes = {"embed": (30, 100), "norm": (64,), "up": (40, 50), "bias": (7,), "down": (50, 40)}
    return make_layout([TensorSpec(name, shape) for name, shape in shapes.items()], 1500)


def initial(plan: Layout) -> dict[int, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {b.index: torch.randn(b.numel, generator=generator) for b in plan.blocks}


def engine(train: Train, owned: list[int] | None = None) -> ShardEngine:
    plan = layout()
    shard = ShardEngine(plan, range(len(plan.blocks)) if owned is None else owned, train)
    shard.load(0, initial(plan), {})
    return shard


def update(seed: int) -> Tensor:
    return torch.randn(layout().numel, generator=torch.Generator().manual_seed(seed))


def part(flat: Tensor, shard: ShardEngine, kind: str = "none") -> bytes:
    plan = layout()
    encoded = encode_update(flat, plan.blocks, make_codec(Compression(kind=kind)))
    return b"".join(bytes_of(encoded[index]) for index in shard.part_nbytes())


def commit(shard: ShardEngine, number: int, *seeds: int, kind: str = "none") -> None:
    names = [f"u{number}.{seed}" for seed in seeds]
    for name, seed in zip(names, seeds, strict=True):
        shard.stage(name, part(update(seed), shard, kind))
    shard.apply(number, [(name, 1 / len(names)) for name in names], LR)


def whole(shard: ShardEngine, version: int) -> Tensor:
    return torch.cat([shard.read(version, index) for index in shard.part_nbytes()])


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# -- arithmetic ---------------------------------------------------------------


def test_an_update_is_subtracted_times_rate_and_weight():
    shard = engine(PLAIN)
    before = whole(shard, 0)
    shard.stage("a", part(update(1), shard))
    shard.stage("b", part(update(2), shard))
    shard.apply(1, [("a", 1.0), ("b", 0.5)], LR)
    assert shard.version == 1
    assert torch.allclose(whole(shard, 1), before - LR * (update(1) + 0.5 * update(2)), atol=1e-6)


def test_adamw_over_segments_is_torchs_with_norms_spared():
    plan, shard = layout(), engine(ADAMW)
    flat = torch.cat(list(initial(plan).values()))
    params = [
        torch.nn.Parameter(p.reshape(t.shape).clone())
        for p, t in zip(flat.split([t.numel for t in plan.tensors]), plan.tensors, strict=True)
    ]
    groups = [
        {"params": [p for p in params if p.dim() > 1], "weight_decay": 0.1},
        {"params": [p for p in params if p.dim() == 1], "weight_decay": 0.0},
    ]
    torchs = torch.optim.AdamW(groups, lr=LR, betas=ADAMW.optimizer.betas, eps=ADAMW.optimizer.eps)
    for number in range(1, 6):
        commit(shard, number, number)
        for p, g in zip(params, update(number).split([t.numel for t in plan.tensors]), strict=True):
            p.grad = g.reshape(p.shape)
        torchs.step()
    expected = torch.cat([p.detach().flatten() for p in params])
    assert (whole(shard, 5) - expected).abs().max() <= 1e-6


@pytest.mark.parametrize("outer", ["none", "sgd", "nesterov"])
def test_local_sgd_steps_with_the_outer_optimiser_as_far_as_the_commit_counts(outer: str):
    shard = engine(Train(sync=Sync("local-sgd", 8), outer=Outer(outer, lr=0.5, momentum=0.9)))
    before = whole(shard, 0)
    commit(shard, 1, 1)
    factor = LR * {"none": 1.0, "sgd": 0.5, "nesterov": 0.5 * 1.9}[outer]  # LR: how much the commit counts
    assert torch.allclose(whole(shard, 1), before - factor * update(1), atol=1e-5)


@pytest.mark.parametrize("kind", CODEC_NAMES)
def test_two_shards_hold_together_what_one_would(kind: str):
    train = Train(compression=Compression(kind=kind))
    one = engine(train)
    halves = [engine(train, [0, 3, 5]), engine(train, [1, 2, 4, 6])]
    for number in (1, 2, 3):
        for shard in (one, *halves):
            commit(shard, number, number, number + 50, kind=kind)
    for half in halves:
        for index in half.part_nbytes():
            assert torch.allclose(half.read(3, index), one.read(3, index), atol=1e-7)


def test_the_same_commits_give_the_same_bits_with_readers_or_without():
    quiet, busy = engine(ADAMW), engine(ADAMW)
    for number in range(1, 6):
        busy.pin(busy.version)
        busy.state_for_checkpoint(busy.version)
        commit(quiet, number, number, 90)
        commit(busy, number, number, 90)
    assert torch.equal(whole(quiet, 5), whole(busy, 5))


# -- staging ------------------------------------------------------------------


@pytest.mark.parametrize("kind", CODEC_NAMES)
def test_staging_reports_the_norm_of_what_was_decoded(kind: str):
    shard = engine(Train(compression=Compression(kind=kind)))
    payload = part(update(1), shard, kind)
    staged = shard.stage("a", memoryview(payload))
    plan, codec, at, total = layout(), make_codec(Compression(kind=kind)), 0, 0.0
    for index, nbytes in shard.part_nbytes().items():
        seen = codec.decode(payload[at : at + nbytes], plan.blocks[index].numel)
        total += float(seen.double().square().sum())
        at += nbytes
    assert staged.finite
    assert staged.nbytes == len(payload) == sum(shard.part_nbytes().values())
    assert staged.squared_norm == pytest.approx(total)


def test_a_known_id_is_answered_as_before():
    shard = engine(PLAIN)
    first = shard.stage("a", part(update(1), shard))
    assert shard.stage("a", b"anything") == first


@pytest.mark.parametrize("kind", CODEC_NAMES)
def test_a_diverged_update_is_reported_and_never_applied(kind: str):
    shard = engine(Train(compression=Compression(kind=kind)))
    before = whole(shard, 0).clone()
    flat = update(1)
    flat[1234] = float("nan")
    staged = shard.stage("bad", part(flat, shard, kind))
    assert (staged.finite, staged.squared_norm) == (False, 0.0)
    assert shard.memory_nbytes()["staged"] == 0
    shard.stage("good", part(update(2), shard, kind))
    with pytest.raises(ValueError, match="bad is not finite"):
        shard.apply(1, [("good", 0.5), ("bad", 0.5)], LR)
    assert shard.version == 0
    assert torch.equal(whole(shard, 0), before)
    shard.drop("bad")
    shard.apply(1, [("good", 1.0)], LR)


def test_a_part_of_the_wrong_length_is_refused_and_not_kept():
    shard = engine(PLAIN)
    payload = part(update(1), shard)
    for wrong in (b"", payload[:-1], payload + b"\0"):
        with pytest.raises(FrameError, match="bytes where"):
            shard.stage("a", wrong)
    assert shard.stage("a", payload).finite


def test_a_hostile_part_is_refused_and_not_kept():
    shard = engine(Train(compression=Compression(kind="topk")))
    payload = bytes([1] * sum(shard.part_nbytes().values()))
    with pytest.raises(FrameError):
        shard.stage("a", payload)
    with pytest.raises(ValueError, match="not staged"):
        shard.apply(1, [("a", 1.0)], LR)


# -- exactly once -------------------------------------------------------------


def test_only_the_next_commit_is_applied_and_only_once():
    shard = engine(PLAIN)
    shard.stage("a", part(update(1), shard))
    for number in (0, 2, -1):
        with pytest.raises(ValueError, match="does not follow"):
            shard.apply(number, [("a", 1.0)], LR)
    shard.apply(1, [("a", 1.0)], LR)
    with pytest.raises(ValueError, match="does not follow"):
        shard.apply(1, [("a", 1.0)], LR)
    with pytest.raises(ValueError, match="a is not staged"):
        shard.apply(2, [("a", 1.0)], LR)


def test_a_refused_commit_changes_nothing():
    shard = engine(ADAMW)
    commit(shard, 1, 1)
    shard.stage("a", part(update(1), shard))
    params, state = shard.state_for_checkpoint(1)
    for members in ([], [("a", 1.0), ("gone", 1.0)], [("a", 0.5), ("a", 0.5)]):
        with pytest.raises(ValueError):
            shard.apply(2, members, LR)
    again, state_again = shard.state_for_checkpoint(1)
    assert same(params, again)
    assert same(state, state_again)
    shard.apply(2, [("a", 1.0)], LR)


def test_nothing_is_applied_or_read_before_load():
    shard = ShardEngine(layout(), [0], PLAIN)
    assert shard.version == -1
    with pytest.raises(ValueError):
        shard.apply(0, [("a", 1.0)], LR)
    with pytest.raises(KeyError):
        shard.pin(-1)


def test_drop_frees_and_is_harmless_twice():
    shard = engine(PLAIN)
    nbytes = shard.stage("a", part(update(1), shard)).nbytes
    assert shard.memory_nbytes()["staged"] == nbytes
    shard.drop("a")
    shard.drop("a")
    assert shard.memory_nbytes()["staged"] == 0


# -- versions -----------------------------------------------------------------


def test_a_pinned_version_stays_as_it_was_until_its_last_unpin():
    shard = engine(ADAMW)
    shard.pin(0)
    shard.pin(0)
    before = whole(shard, 0).clone()
    commit(shard, 1, 1)
    shard.pin(0)
    commit(shard, 2, 2)
    assert torch.equal(whole(shard, 0), before)
    for _ in range(2):
        shard.unpin(0)
        assert torch.equal(whole(shard, 0), before)
    shard.unpin(0)
    with pytest.raises(KeyError, match="gone"):
        shard.read(0, 0)
    with pytest.raises(KeyError, match="gone"):
        shard.pin(0)
    shard.unpin(0)


def test_what_was_read_without_a_pin_stays_as_it_was_too():
    """A socket may still be sending it when the next commit comes."""
    shard = engine(PLAIN)
    block = shard.read(0, 0)
    before = block.clone()
    commit(shard, 1, 1)
    assert torch.equal(block, before)
    assert not torch.equal(shard.read(1, 0), before)


def test_without_readers_everything_happens_in_place():
    shard = engine(ADAMW)
    commit(shard, 1, 1)
    where = {name: t.data_ptr() for name, t in shard._segments[0].state.items()}
    params = shard._segments[0].params.data_ptr()
    commit(shard, 2, 2)
    assert params == shard._segments[0].params.data_ptr()
    assert where == {name: t.data_ptr() for name, t in shard._segments[0].state.items()}


def test_a_block_of_another_shard_is_not_readable():
    with pytest.raises(KeyError):
        engine(PLAIN, [0, 1]).read(0, 2)


class Cuts(RuleBasedStateMachine):
    """Random commits, pins and reads against a plain list of all versions there ever were."""

    def __init__(self) -> None:
        super().__init__()
        self.shard = engine(ADAMW)
        self.history = [whole(self.shard, 0).clone()]
        self.pins: list[int] = []
        self.held: list[tuple[int, Tensor]] = []

    @rule(seed=st.integers(0, 9))
    def commit(self, seed: int) -> None:
        commit(self.shard, self.shard.version + 1, seed)
        self.history.append(torch.cat([t.clone() for t in self._current()]))

    @rule()
    def pin(self) -> None:
        self.shard.pin(self.shard.version)
        self.pins.append(self.shard.version)

    @precondition(lambda self: self.pins)
    @rule(data=st.data())
    def unpin(self, data: st.DataObject) -> None:
        self.shard.unpin(self.pins.pop(data.draw(st.integers(0, len(self.pins) - 1))))

    @precondition(lambda self: self.pins)
    @rule(data=st.data())
    def hold(self, data: st.DataObject) -> None:
        version = data.draw(st.sampled_from(self.pins))
        self.held.append((version, whole(self.shard, version)))

    @invariant()
    def pinned_versions_are_whole(self) -> None:
        for version in self.pins:
            assert torch.equal(whole(self.shard, version), self.history[version])
        for version, held in self.held:
            assert torch.equal(held, self.history[version])

    def _current(self) -> list[Tensor]:
        homes = [self.shard._home[index] for index in self.shard.part_nbytes()]
        return [self.shard._segments[home].params[where] for home, where in homes]


TestCuts = Cuts.TestCase
TestCuts.settings = settings(max_examples=15, stateful_step_count=15, deadline=None)


# -- checkpoints --------------------------------------------------------------


@pytest.mark.parametrize(
    "train",
    [
        PLAIN,
        ADAMW,
        Train(optimizer=Optimizer("sgd", momentum=0.9)),
        Train(sync=Sync("local-sgd", 8), outer=Outer("nesterov", 0.7)),
    ],
)
def test_a_resumed_shard_goes_on_with_the_same_bits(train: Train, tmp_path: Path):
    shard = engine(train)
    for number in (1, 2, 3):
        commit(shard, number, number)
    params, state = shard.state_for_checkpoint(3)
    for number in (4, 5):  # while the writer is not done yet
        commit(shard, number, number)
    save_file(params | state, tmp_path / "part.safetensors")
    loaded = load_file(tmp_path / "part.safetensors")
    resumed = ShardEngine(layout(), list(shard.part_nbytes()), train)
    blocks = {b.index: loaded[f"block.{b.index}"] for b in layout().blocks}
    resumed.load(3, blocks, loaded)
    for number in (4, 5):
        commit(resumed, number, number)
    for mine, yours in zip(resumed.state_for_checkpoint(5), shard.state_for_checkpoint(5), strict=True):
        assert same(mine, yours)


def test_a_checkpoint_is_one_cut_of_parameters_and_state():
    shard = engine(ADAMW)
    commit(shard, 1, 1)
    params, state = shard.state_for_checkpoint(1)
    copies = [{name: t.clone() for name, t in d.items()} for d in (params, state)]
    commit(shard, 2, 2)
    commit(shard, 3, 3)
    assert same(params, copies[0])
    assert same(state, copies[1])
    assert {int(state[name]) for name in state if name.endswith(".step")} == {1}
    with pytest.raises(KeyError, match="gone"):
        shard.state_for_checkpoint(1)


def test_loading_does_not_alias_and_forgets_the_rest():
    shard = engine(ADAMW)
    shard.stage("a", part(update(1), shard))
    shard.pin(0)
    blocks = initial(layout())
    shard.load(0, blocks, {})
    for t in blocks.values():
        t.zero_()
    assert whole(shard, 0).abs().sum() > 0
    assert shard.memory_nbytes()["staged"] == 0
    with pytest.raises(ValueError, match="not staged"):
        shard.apply(1, [("a", 1.0)], LR)


def test_a_checkpoint_that_lacks_something_is_refused_before_anything_changes():
    shard = engine(ADAMW)
    commit(shard, 1, 1)
    blocks = initial(layout())
    _, state = shard.state_for_checkpoint(1)
    for wrong_blocks, wrong_state in (
        ({**blocks, 0: torch.zeros(3)}, state),
        ({**blocks, 0: blocks[0].double()}, state),
        ({i: t for i, t in blocks.items() if i}, state),
        (blocks, {}),
        (blocks, {k: t for k, t in state.items() if k != "block.2.v"}),
        (blocks, {k: t for k, t in state.items() if k != "block.2.step"}),
    ):
        with pytest.raises(ValueError, match="block"):
            shard.load(7, wrong_blocks, wrong_state)
    assert shard.version == 1


# -- memory -------------------------------------------------------------------


def test_memory_is_parameters_state_staged_and_pinned():
    shard = engine(ADAMW)
    numel = layout().numel
    nbytes = 4 * numel
    expected = {"params": nbytes, "state": 2 * nbytes, "staged": 0, "pinned": 0, "scratch": 2 * nbytes}
    assert shard.memory_nbytes() == expected
    shard.pin(0)
    assert shard.memory_nbytes() == expected
    commit(shard, 1, 1)
    assert shard.memory_nbytes() == {**expected, "pinned": nbytes}
    shard.pin(1)
    commit(shard, 2, 2)
    assert shard.memory_nbytes() == {**expected, "pinned": 2 * nbytes}
    shard.unpin(0)
    shard.unpin(1)
    assert shard.memory_nbytes() == expected


@pytest.mark.parametrize("kind", CODEC_NAMES)
def test_staged_updates_are_held_as_received(kind: str):
    shard = engine(Train(compression=Compression(kind=kind)))
    for seed in range(4):
        shard.stage(f"u{seed}", part(update(seed), shard, kind))
    assert shard.memory_nbytes()["staged"] == 4 * sum(shard.part_nbytes().values())
    shard.apply(1, [(f"u{seed}", 0.25) for seed in range(4)], LR)
    assert shard.memory_nbytes()["staged"] == 0


def test_scratch_does_not_grow_with_the_model():
    plan = make_layout([TensorSpec("w", (3000, 1000))], 1 << 20)
    shard = ShardEngine(plan, range(len(plan.blocks)), PLAIN)
    assert shard.memory_nbytes()["scratch"] == 2 * 4 * (1 << 20)
