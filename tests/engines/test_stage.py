"""A model cut into stages is the model: same logits, same tokens, however rows are batched, moved or rewound."""

from __future__ import annotations

from collections.abc import Sequence
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
from medley.engines.stage import Drawn, Refused, Row, StageEngine, cancel_others
from medley.engines.stage_cache import Gap, NoRoom
from medley.models.slices import Span, config_of_directory
from medley.models.weightfiles import WeightFiles, directory_files

CUTS = {1: (0, LAYERS), 2: (0, 3, LAYERS), 3: (0, 1, 2, LAYERS)}
PLENTY = 64 << 20


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


def stages(directory: Path, count: int, kv_limit_nbytes: int = PLENTY) -> list[StageEngine]:
    config = config_of_directory(directory)
    weights = WeightFiles.open(directory_files(directory))
    return [
        StageEngine.load(weights, config, Span(a, b, LAYERS), torch.float32, kv_limit_nbytes)
        for a, b in pairwise(CUTS[count])
    ]


def chain(engines: Sequence[StageEngine], rows: Sequence[Row], tokens: Sequence[int]) -> list[Drawn]:
    given: Sequence[int] | Tensor = tokens
    for engine in engines[:-1]:
        out = engine.forward(rows, given)
        assert isinstance(out, Tensor)
        given = out
    drawn = engines[-1].forward(rows, given)
    assert isinstance(drawn, list)
    return drawn


def opened(engines: Sequence[StageEngine], request: str, sampling: Sampling | None = None) -> None:
    for engine in engines:
        engine.open(request, sampling)


def logits_of(engines: Sequence[StageEngine], request: str, ids: Sequence[int], start: int = 0) -> np.ndarray:
    """[tokens, vocabulary], from log-probabilities of the whole vocabulary."""
    drawn = chain(engines, [Row(request, start, len(ids), len(ids))], ids)
    assert [d.position for d in drawn] == list(range(start + 1, start + len(ids) + 1))
    rows = [dict(d.logprob.top) for d in drawn if d.logprob]
    return np.array([[row[token] for token in range(VOCABULARY)] for row in rows])


def reference(model: Any, ids: Sequence[int]) -> np.ndarray:
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0]
    found: np.ndarray = torch.log_softmax(logits.double(), -1).numpy()
    return found


def prompt(seed: int, length: int) -> list[int]:
    return [int(i) for i in np.random.default_rng(seed).integers(2, VOCABULARY, length)]


def generate(engines: Sequence[StageEngine], request: str, ids: Sequence[int], count: int, known: int = 0) -> list[int]:
    """`known` positions are held already."""
    tokens = list(ids)
    for _ in range(count):
        row = Row(request, known, len(tokens) - known, 1)
        tokens.append(chain(engines, [row], tokens[known:])[0].token)
        known = len(tokens) - 1
    return tokens[len(ids) :]


@pytest.mark.parametrize("count", CUTS)
def test_stages_give_the_logits_of_the_unsplit_model(checkpoint: tuple[Any, Path], count: int) -> None:
    model, directory = checkpoint
    engines = stages(directory, count)
    ids = prompt(count, 60)
    opened(engines, "a", Sampling(logprobs=VOCABULARY))
    # A chunk, a longer one past the sliding window, then one token at a time.
    pieces = [logits_of(engines, "a", ids[:10]), logits_of(engines, "a", ids[10:50], 10)]
    pieces += [logits_of(engines, "a", [ids[at]], at) for at in range(50, 60)]
    np.testing.assert_allclose(np.concatenate(pieces), reference(model, ids), atol=1e-5, rtol=0)


def test_ragged_rows_give_what_each_gives_alone(checkpoint: tuple[Any, Path]) -> None:
    _, directory = checkpoint
    engines = stages(directory, 2)
    asked = {name: prompt(n, 5 + 9 * n) for n, name in enumerate("abc")}
    samplings = {
        "a": Sampling(),
        "b": Sampling(temperature=0.9, seed=5),
        "c": Sampling(temperature=1.3, top_k=20, seed=6),
    }
    alone = {}
    for name, ids in asked.items():
        opened(engines, f"{name}-alone", samplings[name])
        alone[name] = generate(engines, f"{name}-alone", ids, 8)
        opened(engines, name, samplings[name])
    together = {name: list(ids) for name, ids in asked.items()}
    known = dict.fromkeys(asked, 0)
    for _ in range(8):
        rows = [Row(name, known[name], len(ids) - known[name], 1) for name, ids in together.items()]
        tokens = [token for name, ids in together.items() for token in ids[known[name] :]]
        known = {name: len(ids) for name, ids in together.items()}
        for drawn in chain(engines, rows, tokens):
            together[drawn.request].append(drawn.token)
    assert {name: ids[len(asked[name]) :] for name, ids in together.items()} == alone


def test_chunks_of_a_prompt_beside_a_decode_change_neither(directory: Path) -> None:
    engines = stages(directory, 3)
    long, short = prompt(1, 300), prompt(2, 6)
    for name in ("alone-long", "alone-short", "long", "short"):
        opened(engines, name)
    expected_long = generate(engines, "alone-long", long, 4)
    expected_short = generate(engines, "alone-short", short, 12)
    tokens = [*short, *generate(engines, "short", short, 1)]
    for start in range(0, 300, 64):
        chunk = long[start : start + 64]
        last = start + 64 >= 300
        rows = [Row("short", len(tokens) - 1, 1, 1), Row("long", start, len(chunk), int(last))]
        drawn = chain(engines, rows, [tokens[-1], *chunk])
        tokens.append(drawn[0].token)
        assert len(drawn) == 1 + last
    tokens += generate(engines, "short", tokens, 12 - (len(tokens) - 6), len(tokens) - 1)
    assert tokens[6:] == expected_short
    after = [*long, drawn[1].token]
    assert [drawn[1].token, *generate(engines, "long", after, 3, 300)] == expected_long


def test_kv_that_moved_continues_with_the_same_tokens(checkpoint: tuple[Any, Path]) -> None:
    _, directory = checkpoint
    before, after = stages(directory, 2), stages(directory, 3)
    ids = prompt(9, 40)
    sampling = Sampling(temperature=0.8, seed=11)
    opened(before, "undisturbed", sampling)
    opened(before, "a", sampling)
    opened(after, "a", sampling)
    expected = generate(before, "undisturbed", ids, 20)
    tokens = [*ids, *generate(before, "a", ids, 9)]
    held = before[0].held()["a"]
    assert held == len(tokens) - 1
    for source in before:
        for target in after:
            first, end = max(source.span.first, target.span.first), min(source.span.end, target.span.end)
            if first < end:
                # In two pieces, as a live move does it: most of it ahead, the rest at the cut.
                target.import_kv("a", range(first, end), 0, source.export_kv("a", range(first, end), 0, 30))
                target.import_kv("a", range(first, end), 30, source.export_kv("a", range(first, end), 30))
    assert all(engine.held()["a"] == held for engine in after)
    assert tokens[40:] + generate(after, "a", tokens, 11, held) == expected


def test_a_second_life_without_kv_draws_the_same_tokens(directory: Path) -> None:
    ids, sampling = prompt(4, 30), Sampling(temperature=1.0, top_p=0.9, seed=2, choice=1)
    first, second = stages(directory, 2), stages(directory, 3)
    opened(first, "a", sampling)
    opened(second, "a", sampling)
    expected = generate(first, "a", ids, 16)
    assert generate(second, "a", [*ids, *expected[:7]], 9) == expected[7:]


def test_a_draft_is_verified_in_one_pass_and_a_wrong_one_rewound(directory: Path) -> None:
    engines = stages(directory, 2)
    ids = prompt(5, 12)
    opened(engines, "plain")
    opened(engines, "drafted")
    expected = generate(engines, "plain", ids, 10)
    tokens = [*ids, *generate(engines, "drafted", ids, 1)]
    draft = [expected[1], expected[2], (expected[3] + 1) % VOCABULARY, 7]
    row = Row("drafted", len(tokens) - 1, 1 + len(draft), 1 + len(draft))
    drawn = [d.token for d in chain(engines, [row], [tokens[-1], *draft])]
    assert drawn[:3] == expected[1:4]
    tokens += drawn[:3]
    assert tokens[12:] + generate(engines, "drafted", tokens, 6, len(tokens) - 1) == expected


def test_cancelling_frees_the_cache_and_the_limit_holds(directory: Path) -> None:
    token_nbytes = 2 * 2 * 8 * 4 * LAYERS
    (engine,) = stages(directory, 1, kv_limit_nbytes=2 * 256 * token_nbytes)
    for name in ("a", "b", "c"):
        engine.open(name)
        if name != "c":
            engine.forward([Row(name, 0, 3, 1)], [5, 6, 7])
    assert engine.kv_nbytes == engine.kv_limit_nbytes
    with pytest.raises(NoRoom):
        engine.forward([Row("a", 3, 1), Row("c", 0, 3)], [1, 2, 3, 4])
    assert engine.held() == {"a": 3, "b": 3, "c": 0}
    assert cancel_others(engine, ["a", "c"]) == ["b"]
    engine.cancel("b")
    engine.forward([Row("c", 0, 3)], [2, 3, 4])
    engine.cancel("a")
    engine.cancel("c")
    assert engine.kv_nbytes == 0


@pytest.mark.parametrize(
    ("rows", "tokens", "error"),
    [
        ([Row("a", 4, 1)], [1], Gap),
        ([Row("x", 0, 1)], [1], Refused),
        ([Row("a", 3, 2)], [1], Refused),
        ([Row("a", 3, 1), Row("a", 4, 1)], [1, 2], Refused),
        ([Row("a", 3, 1, 2)], [1], Refused),
        ([Row("a", 3, 1)], [VOCABULARY], Refused),
        ([Row("a", 3, 698)], [1] * 698, Refused),
        ([], [], Refused),
    ],
)
def test_rows_that_make_no_sense_change_nothing(
    directory: Path, rows: list[Row], tokens: list[int], error: type[Exception]
) -> None:
    (engine,) = stages(directory, 1)
    engine.open("a")
    engine.forward([Row("a", 0, 3)], [1, 2, 3])
    with pytest.raises(error):
        engine.forward(rows, tokens)
    assert engine.held() == {"a": 3}


def test_kv_that_does_not_belong_is_refused(directory: Path) -> None:
    first, last = stages(directory, 2)
    for engine in (first, last):
        engine.open("a")
    first.forward([Row("a", 0, 3)], [1, 2, 3])
    kv = first.export_kv("a", range(3))
    with pytest.raises(Refused, match="are not held"):
        last.import_kv("a", range(3), 0, kv)
    with pytest.raises(Refused, match="shape"):
        first.import_kv("a", range(2), 0, kv)
    with pytest.raises(Gap):
        first.import_kv("a", range(3), 5, kv)
    with pytest.raises(Gap):
        first.export_kv("a", range(3), 0, 4)


def test_numbers_that_are_not_finite_end_only_their_request(directory: Path) -> None:
    (engine,) = stages(directory, 1)
    engine.open("a")
    engine.open("b")
    engine.sliced.embed_tokens.weight.data[7] = float("nan")
    drawn = chain([engine], [Row("a", 0, 1, 1), Row("b", 0, 1, 1)], [7, 8])
    assert drawn[0].failure and not drawn[1].failure
