"""A model cut into stages is the model: same logits, same tokens, however rows are batched, moved or rewound."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.tinymodels import FAMILIES, LAYERS, VOCABULARY, saved, tiny
from torch import Tensor

from medley.engines.sampling import Sampling
from medley.engines.stage import StageEngine
from medley.engines.stage_refusals import Gap, NoRoom, NotFinite, Refused, StageRefusal
from medley.models.random_weights import RandomTensors
from medley.models.slices import Parts, config_of_directory
from medley.models.weightfiles import Stored, WeightFiles, directory_files
from medley.protocol.errors import UserError
from medley.protocol.stages.words import Draw, Row

CUTS = {1: (0, LAYERS), 2: (0, 3, LAYERS), 3: (0, 1, 2, LAYERS)}
PLENTY = 64 << 20


@dataclass(frozen=True, slots=True)
class Hop:
    """An engine with the layers that it computes in a chain."""

    engine: StageEngine
    first: int
    end: int

    def held(self, request: int) -> int:
        return self.engine.held(self.first, self.end)[request]


@pytest.fixture(scope="module", params=FAMILIES)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    model = tiny(request.param)
    return model, saved(model, tmp_path_factory.mktemp(request.param))


@cache
def llama() -> Any:
    return tiny("llama")


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(llama(), tmp_path_factory.mktemp("llama"))


def weights(directory: Path) -> WeightFiles:
    return WeightFiles.open(directory_files(directory))


def stages(directory: Path, count: int, kv_limit_nbytes: int = PLENTY) -> list[Hop]:
    config = config_of_directory(directory)
    made = []
    for first, end in pairwise(CUTS[count]):
        engine = StageEngine(config, torch.float32, kv_limit_nbytes)
        engine.load(weights(directory), first, end)
        made.append(Hop(engine, first, end))
    return made


def whole(directory: Path, kv_limit_nbytes: int = PLENTY) -> tuple[StageEngine, list[Hop]]:
    hops = stages(directory, 1, kv_limit_nbytes)
    return hops[0].engine, hops


def chain(hops: Sequence[Hop], rows: Sequence[Row], tokens: Sequence[int]) -> list[Draw]:
    given: Sequence[int] | Tensor = tokens
    for hop in hops[:-1]:
        out = hop.engine.forward(rows, given, hop.first, hop.end)
        assert isinstance(out, Tensor)
        given = out
    drawn = hops[-1].engine.forward(rows, given, hops[-1].first, hops[-1].end)
    assert isinstance(drawn, list)
    return drawn


def opened(hops: Sequence[Hop], request: int, sampling: Sampling | None = None) -> None:
    for hop in hops:
        hop.engine.open(request, sampling)


def logits_of(hops: Sequence[Hop], request: int, ids: Sequence[int], start: int = 0) -> np.ndarray:
    """[tokens, vocabulary], from log-probabilities of the whole vocabulary."""
    drawn = chain(hops, [Row(request, start, len(ids), len(ids))], ids)
    assert [d.position for d in drawn] == list(range(start + 1, start + len(ids) + 1))
    rows = [{one.token: one.logprob for one in d.top} for d in drawn]
    return np.array([[row[token] for token in range(VOCABULARY)] for row in rows])


def reference(model: Any, ids: Sequence[int]) -> np.ndarray:
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0]
    found: np.ndarray = torch.log_softmax(logits.double(), -1).numpy()
    return found


def prompt(seed: int, length: int) -> list[int]:
    return [int(i) for i in np.random.default_rng(seed).integers(2, VOCABULARY, length)]


def generate(hops: Sequence[Hop], request: int, ids: Sequence[int], count: int, known: int = 0) -> list[int]:
    """`known` positions are held already."""
    tokens = list(ids)
    for _ in range(count):
        row = Row(request, known, len(tokens) - known, 1)
        tokens.append(chain(hops, [row], tokens[known:])[0].token)
        known = len(tokens) - 1
    return tokens[len(ids) :]


@pytest.mark.parametrize("count", CUTS)
def test_stages_give_the_logits_of_the_unsplit_model(checkpoint: tuple[Any, Path], count: int) -> None:
    model, directory = checkpoint
    hops = stages(directory, count)
    ids = prompt(count, 60)
    opened(hops, 1, Sampling(logprobs=VOCABULARY))
    # A chunk, a longer one past the sliding window, then one token at a time.
    pieces = [logits_of(hops, 1, ids[:10]), logits_of(hops, 1, ids[10:50], 10)]
    pieces += [logits_of(hops, 1, [ids[at]], at) for at in range(50, 60)]
    np.testing.assert_allclose(np.concatenate(pieces), reference(model, ids), atol=1e-5, rtol=0)


def test_ragged_rows_give_what_each_gives_alone(checkpoint: tuple[Any, Path]) -> None:
    _, directory = checkpoint
    hops = stages(directory, 2)
    asked = {request: prompt(request, 9 * request - 4) for request in (1, 2, 3)}
    samplings = {
        1: Sampling(),
        2: Sampling(temperature=0.9, seed=5),
        3: Sampling(temperature=1.3, top_k=20, seed=6),
    }
    alone = {}
    for request, ids in asked.items():
        opened(hops, 10 + request, samplings[request])
        alone[request] = generate(hops, 10 + request, ids, 8)
        opened(hops, request, samplings[request])
    together = {request: list(ids) for request, ids in asked.items()}
    known = dict.fromkeys(asked, 0)
    for _ in range(8):
        rows = [Row(request, known[request], len(ids) - known[request], 1) for request, ids in together.items()]
        tokens = [token for request, ids in together.items() for token in ids[known[request] :]]
        known = {request: len(ids) for request, ids in together.items()}
        for drawn in chain(hops, rows, tokens):
            together[drawn.request].append(drawn.token)
    assert {request: ids[len(asked[request]) :] for request, ids in together.items()} == alone


def test_chunks_of_a_prompt_beside_a_decode_change_neither(directory: Path) -> None:
    hops = stages(directory, 3)
    long, short = prompt(1, 300), prompt(2, 6)
    for request in (1, 2, 3, 4):
        opened(hops, request)
    expected_long = generate(hops, 3, long, 4)
    expected_short = generate(hops, 4, short, 12)
    tokens = [*short, *generate(hops, 2, short, 1)]
    for start in range(0, 300, 64):
        chunk = long[start : start + 64]
        last = start + 64 >= 300
        rows = [Row(2, len(tokens) - 1, 1, 1), Row(1, start, len(chunk), int(last))]
        drawn = chain(hops, rows, [tokens[-1], *chunk])
        tokens.append(drawn[0].token)
        assert len(drawn) == 1 + last
    tokens += generate(hops, 2, tokens, 12 - (len(tokens) - 6), len(tokens) - 1)
    assert tokens[6:] == expected_short
    after = [*long, drawn[1].token]
    assert [drawn[1].token, *generate(hops, 1, after, 3, 300)] == expected_long


def test_kv_that_moved_continues_with_the_same_tokens(checkpoint: tuple[Any, Path]) -> None:
    _, directory = checkpoint
    before, after = stages(directory, 2), stages(directory, 3)
    ids = prompt(9, 40)
    sampling = Sampling(temperature=0.8, seed=11)
    opened(before, 9, sampling)
    opened(before, 1, sampling)
    expected = generate(before, 9, ids, 20)
    tokens = [*ids, *generate(before, 1, ids, 9)]
    held = before[0].held(1)
    assert held == len(tokens) - 1
    for source in before:
        for target in after:
            first, end = max(source.first, target.first), min(source.end, target.end)
            if first < end:
                # In two pieces, as a live move does it: most of it ahead, the rest at the cut.
                layers = range(first, end)
                target.engine.import_kv(1, layers, 0, source.engine.export_kv(1, layers, 0, 30))
                target.engine.import_kv(1, layers, 30, source.engine.export_kv(1, layers, 30))
    assert all(hop.held(1) == held for hop in after)
    opened(after, 1, sampling)
    assert tokens[40:] + generate(after, 1, tokens, 11, held) == expected


def test_a_second_life_without_kv_draws_the_same_tokens(directory: Path) -> None:
    ids, sampling = prompt(4, 30), Sampling(temperature=1.0, top_p=0.9, seed=2, choice=1)
    first, second = stages(directory, 2), stages(directory, 3)
    opened(first, 1, sampling)
    opened(second, 1, sampling)
    expected = generate(first, 1, ids, 16)
    assert generate(second, 1, [*ids, *expected[:7]], 9) == expected[7:]


def test_a_draft_is_verified_in_one_pass_and_a_wrong_one_rewound(directory: Path) -> None:
    hops = stages(directory, 2)
    ids = prompt(5, 12)
    opened(hops, 1)
    opened(hops, 2)
    expected = generate(hops, 1, ids, 10)
    tokens = [*ids, *generate(hops, 2, ids, 1)]
    draft = [expected[1], expected[2], (expected[3] + 1) % VOCABULARY, 7]
    row = Row(2, len(tokens) - 1, 1 + len(draft), 1 + len(draft))
    drawn = [d.token for d in chain(hops, [row], [tokens[-1], *draft])]
    assert drawn[:3] == expected[1:4]
    tokens += drawn[:3]
    assert tokens[12:] + generate(hops, 2, tokens, 6, len(tokens) - 1) == expected


def test_a_request_that_begins_as_a_copy_goes_on_like_one_that_was_computed(directory: Path) -> None:
    hops = stages(directory, 2)
    ids, other = prompt(6, 40), prompt(7, 9)
    opened(hops, 1)
    opened(hops, 2)
    expected = generate(hops, 1, [*ids[:32], *other], 6)
    generate(hops, 2, ids, 3)
    for hop in hops:
        hop.engine.open(3, Sampling(), donor=2, donor_tokens=32)
        assert hop.held(3) == 32
    assert generate(hops, 3, [*ids[:32], *other], 6, 32) == expected
    # Opened again, as after a change of layouts, it keeps what it holds; a donor that is not there gives nothing.
    for hop in hops:
        before = hop.held(3)
        hop.engine.open(3, Sampling(), donor=2, donor_tokens=32)
        hop.engine.open(4, Sampling(), donor=99, donor_tokens=32)
        assert (hop.held(3), hop.held(4)) == (before, 0)
        hop.engine.free(2)
    assert generate(hops, 3, [*ids[:32], *other, *expected[:5]], 1, 45) == expected[5:]


def test_layers_come_and_go_while_requests_are_served(checkpoint: tuple[Any, Path]) -> None:
    _, directory = checkpoint
    engine, hops = whole(directory)
    config = config_of_directory(directory)
    ids = prompt(8, 30)
    opened(hops, 1)
    opened(hops, 2)
    expected = generate(hops, 1, ids, 9)
    tokens = [*ids, *generate(hops, 2, ids, 3)]
    # Its last two layers move to another machine: weights first, then what they hold of the request.
    other = StageEngine(config, torch.float32, PLENTY)
    assert other.load(weights(directory), 2, LAYERS) > 0
    assert other.load(weights(directory), 2, LAYERS) == 0
    other.import_kv(2, range(2, LAYERS), 0, engine.export_kv(2, range(2, LAYERS)))
    engine.unload(2, LAYERS)
    assert (engine.loaded, other.loaded) == ((0, 1), (2, 3))
    assert engine.held(0, 2)[2] == other.held(2, LAYERS)[2] == len(tokens) - 1
    assert engine.held(0, LAYERS)[2] == 0
    with pytest.raises(Refused, match="layer 2 is not loaded"):
        engine.forward([Row(2, 0, 1, 0)], [1], 0, 3)
    split = [Hop(engine, 0, 2), Hop(other, 2, LAYERS)]
    tokens += generate(split, 2, tokens, 3, len(tokens) - 1)
    # And back, a layer at a time, in between in three pieces on two machines.
    for layer in (2, 3):
        engine.load(weights(directory), layer, layer + 1)
        engine.import_kv(2, range(layer, layer + 1), 0, other.export_kv(2, range(layer, layer + 1)))
        other.unload(layer, layer + 1)
        back = [Hop(engine, 0, 1), Hop(engine, 1, layer + 1)]
        back += [Hop(other, layer + 1, LAYERS)] * (layer + 1 < LAYERS)
        tokens += generate(back, 2, tokens, 1, len(tokens) - 1)
    assert (other.loaded, other.kv_nbytes) == ((), 0)
    tokens += generate(hops, 2, tokens, 1, len(tokens) - 1)
    assert tokens[30:] == expected


class Until:
    """Weights that stop coming at a tensor."""

    def __init__(self, source: WeightFiles, last: str) -> None:
        self.source, self.last = source, last

    def find(self, *names: str) -> Stored:
        if self.last in names[0]:
            raise UserError(f"no '{names[0]}'")
        return self.source.find(*names)

    def read(self, stored: Stored, dtype: torch.dtype) -> Tensor:
        return self.source.read(stored, dtype)


def test_a_layer_is_there_only_once_it_is_whole(directory: Path) -> None:
    engine = StageEngine(config_of_directory(directory), torch.float32, PLENTY)
    engine.open(1)
    with pytest.raises(UserError, match="no 'model.layers.2"):
        engine.load(Until(weights(directory), "layers.2.mlp.down_proj"), 0, LAYERS)
    assert engine.loaded == (0, 1)
    assert isinstance(engine.forward([Row(1, 0, 2, 0)], [4, 5], 0, 2), Tensor)
    with pytest.raises(UserError, match="lm_head"):
        engine.load(Until(weights(directory), "lm_head"), 2, LAYERS)
    with pytest.raises(Refused, match="the head is not loaded"):
        engine.forward([Row(1, 0, 2, 0)], [4, 5], 0, LAYERS)
    engine.load(weights(directory), 0, LAYERS)
    assert chain([Hop(engine, 0, LAYERS)], [Row(1, 0, 2, 1)], [4, 5])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("embedding_first", [True, False])
def test_a_tied_matrix_is_held_once_whichever_end_came_first(embedding_first: bool, dtype: torch.dtype) -> None:
    config = tiny("llama-tied").config
    source = RandomTensors(Parts(config, dtype).shapes(), 1)
    engine = StageEngine(config, dtype, PLENTY)
    spans = [(0, 2), (2, LAYERS)] if embedding_first else [(2, LAYERS), (0, 2)]
    first, second = (engine.load(source, *span) for span in spans)
    matrix = VOCABULARY * config.hidden_size * 4  # as it is stored
    engine.unload(0, 2)
    # The other end keeps it, so that only two layers are read again.
    assert engine.load(source, 0, 2) == (first - matrix if embedding_first else second)
    other = StageEngine(config, dtype, PLENTY)
    assert other.load(source, 0, LAYERS) == first + second
    drawn = []
    for one in (engine, other):
        one.open(1, Sampling(logprobs=5))
        drawn.append(one.forward([Row(1, 0, 3, 3)], [3, 4, 5], 0, LAYERS))
    assert drawn[0] == drawn[1]


def test_freeing_empties_the_cache_and_the_limit_holds(directory: Path) -> None:
    token_nbytes = 2 * 2 * 8 * 4 * LAYERS
    engine, _ = whole(directory, kv_limit_nbytes=2 * 256 * token_nbytes)
    for request in (1, 2, 3):
        engine.open(request)
        if request != 3:
            engine.forward([Row(request, 0, 3, 1)], [5, 6, 7], 0, LAYERS)
    assert engine.kv_nbytes == engine.kv_limit_nbytes
    with pytest.raises(NoRoom) as refusal:
        engine.forward([Row(1, 3, 1, 0), Row(3, 0, 3, 0)], [1, 2, 3, 4], 0, LAYERS)
    assert refusal.value.request == 3
    with pytest.raises(NoRoom):
        engine.open(4, donor=1, donor_tokens=2)
    with pytest.raises(NoRoom):
        engine.import_kv(3, range(LAYERS), 0, engine.export_kv(1, range(LAYERS)))
    assert engine.held(0, LAYERS) == {1: 3, 2: 3, 3: 0}
    engine.free(2)
    engine.free(2)
    engine.forward([Row(3, 0, 3, 0)], [2, 3, 4], 0, LAYERS)
    engine.free(1)
    engine.free(3)
    assert engine.kv_nbytes == 0


@pytest.mark.parametrize(
    ("rows", "tokens", "error"),
    [
        ([Row(1, 4, 1, 0)], [1], Gap),
        ([Row(7, 0, 1, 0)], [1], Refused),
        ([Row(1, 3, 2, 0)], [1], Refused),
        ([Row(1, 3, 1, 0), Row(1, 4, 1, 0)], [1, 2], Refused),
        ([Row(1, 3, 1, 2)], [1], Refused),
        ([Row(1, 3, 1, 0)], [VOCABULARY], Refused),
        ([Row(1, 3, 698, 0)], [1] * 698, Refused),
        ([], [], Refused),
    ],
)
def test_rows_that_make_no_sense_change_nothing(
    directory: Path, rows: list[Row], tokens: list[int], error: type[StageRefusal]
) -> None:
    engine, _ = whole(directory)
    engine.open(1)
    engine.forward([Row(1, 0, 3, 0)], [1, 2, 3], 0, LAYERS)
    with pytest.raises(error) as refusal:
        engine.forward(rows, tokens, 0, LAYERS)
    assert engine.held(0, LAYERS) == {1: 3}
    if error is Gap:
        assert (refusal.value.request, refusal.value.held, refusal.value.kind) == (1, 3, "gap")


def test_kv_that_does_not_belong_is_refused(directory: Path) -> None:
    engine, _ = whole(directory)
    engine.open(1)
    engine.forward([Row(1, 0, 3, 0)], [1, 2, 3], 0, LAYERS)
    kv = engine.export_kv(1, range(3))
    with pytest.raises(Refused, match="no part of a model of 4"):
        engine.import_kv(1, range(2, 5), 0, kv)
    with pytest.raises(Refused, match="shape"):
        engine.import_kv(1, range(2), 0, kv)
    with pytest.raises(Refused, match="700 positions"):
        engine.import_kv(1, range(1), 3, torch.zeros(1, 2, 2, 698, 8))
    with pytest.raises(Gap):
        engine.import_kv(1, range(3), 5, kv)
    with pytest.raises(Gap):
        engine.export_kv(1, range(3), 0, 4)
    assert engine.held(0, LAYERS) == {1: 3}


def test_numbers_that_are_not_finite_name_their_request_and_leave_it_at_its_start(directory: Path) -> None:
    engine, hops = whole(directory)
    embedding = engine._held.embedding
    assert embedding is not None
    embedding.embed_tokens.weight.data[7] = float("nan")
    opened(hops, 1)
    opened(hops, 2)
    chain(hops, [Row(2, 0, 2, 1)], [5, 6])
    with pytest.raises(NotFinite) as refusal:
        chain(hops, [Row(2, 2, 1, 1), Row(1, 0, 1, 1)], [8, 7])
    assert (refusal.value.request, refusal.value.kind) == (1, "numbers")
    assert engine.held(0, LAYERS) == {1: 0, 2: 2}
    assert chain(hops, [Row(2, 2, 1, 1)], [8])
