"""Our own kernels multiply what they are given, whoever stands beside it; where they cannot be, it is said why."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from medley.engines.stage import StageEngine
from medley.models.kernels import build
from medley.models.kernels.build import SWITCH, missing
from medley.models.kernels.layer import Place, Shape, can_be_whole
from medley.models.kernels.products import INT8_COLUMNS, Linear, kernels, pack_int8, takes
from medley.models.lean_layer import LeanLayer
from medley.models.quantise import quantiser
from medley.models.random_weights import RandomTensors
from medley.models.slices import Parts
from medley.models.streamed_linear import FEW, StreamedLinear, streamed_bf16
from medley.protocol.stages.words import Row

HERE = pytest.mark.skipif(bool(missing()), reason=missing() or "kernels are here")
KINDS = ("bf16", "int8", "int4")


def layer(rows: int, columns: int, bias: bool) -> nn.Linear:
    torch.manual_seed(rows + columns)
    made = nn.Linear(columns, rows, bias).bfloat16().requires_grad_(False)
    made.weight.data *= torch.rand(rows, 1) * 3
    return made


def streamed(linear: nn.Linear, kind: str) -> StreamedLinear:
    transform = quantiser(kind) if kind != "bf16" else streamed_bf16
    assert transform is not None
    made: Any = transform(linear)
    assert isinstance(made, StreamedLinear)
    return made


def weights_of(made: StreamedLinear) -> Tensor:
    """[N, K] in fp32: what it multiplies by, as its kernel for many tokens sees it."""
    if made.kind == "bf16":
        return made.packed.float()
    found = kernels()
    assert found is not None
    padded = -(-made.rows // 64) * 64
    wide = found.widened(made.described, range(padded)).float()[: made.rows]
    if made.scales is None or made.kind != "int8":
        return wide
    return wide * made.scales[: made.rows].float()[:, None]


@HERE
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("rows", "columns"), [(1, 64), (50, 128), (64, 192), (1200, 320), (7, 5632)])
@pytest.mark.parametrize("bias", [False, True])
@torch.inference_mode()
def test_products_are_those_of_the_weights(kind: str, rows: int, columns: int, bias: bool) -> None:
    linear = layer(rows, columns, bias)
    made = streamed(linear, kind)
    weight_NK = weights_of(made)
    for tokens in (1, 2, 3, 4, 5, 8, 31, FEW[kind], FEW[kind] + 9):
        x = torch.randn(tokens, columns).bfloat16()
        expected = x.double() @ weight_NK.double().t() + (linear.bias.double() if bias else 0)
        # bf16 has 8 bits. Widened int4 weights are rounded to them once more, and int8 sums before they are scaled.
        rounded = kind == "int4" or (kind == "int8" and tokens > FEW[kind])
        near = expected.abs().amax() / (60 if rounded else 250)
        assert (made(x).double() - expected).abs().amax() <= near, tokens


@HERE
@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_a_tokens_numbers_do_not_depend_on_those_beside_it(kind: str) -> None:
    made = streamed(layer(200, 448, True), kind)
    x = torch.randn(FEW[kind], 448).bfloat16()
    together = made(x)
    for count in (1, 2, 3, 4, 7):
        assert torch.equal(made(x[5 : 5 + count]), together[5 : 5 + count])


@HERE
@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_what_is_not_as_wide_or_not_bf16_is_refused_and_no_tokens_are_none(kind: str) -> None:
    made = streamed(layer(70, 128, True), kind)
    assert made(torch.zeros(2, 0, 128).bfloat16()).shape == (2, 0, 70)
    for wrong in (torch.zeros(1, 64).bfloat16(), torch.zeros(1, 128)):
        with pytest.raises(ValueError, match="meet weights for 128"):
            made(wrong)


@HERE
@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_weights_that_kernels_know_by_address_stay_where_they_are(kind: str) -> None:
    made = streamed(layer(70, 128, True), kind)
    x = torch.randn(1, 128).bfloat16()
    before = made(x)
    for move in (nn.Module.float, nn.Module.half, lambda part: part.to("meta")):
        with pytest.raises(RuntimeError, match="neither moved nor converted"):
            move(nn.Sequential(made))
    with pytest.raises(ValueError, match="pointers"):
        deepcopy(made)
    assert torch.equal(made.to("cpu", torch.bfloat16)(x), before)


@HERE
def test_a_whole_layer_takes_nothing_that_its_loops_would_miss() -> None:
    shape = Shape(128, 320, 4, 2, 32, 0, 1e-6, 0.1)
    assert can_be_whole(shape)
    for wrong in ({"heads": 3}, {"heads": 34, "groups": 2}, {"head_width": 48}, {"head_width": 288}, {"width": 80}):
        assert not can_be_whole(replace(shape, **wrong)), wrong
    lean = engine("llama", torch.bfloat16)._held.layers[0]
    assert isinstance(lean, LeanLayer)
    whole = lean._whole
    assert whole is not None
    places = [Place(0, 0, 1, 0)] * 2
    for hidden, turns in (((2, 64), (2, 1, 32)), ((2, 128), (2, 1, 16)), ((1, 128), (1, 1, 32))):
        with pytest.raises(ValueError, match="is not what this layer takes"):
            whole(torch.zeros(hidden).bfloat16(), *[torch.zeros(turns).bfloat16()] * 2, places)


@HERE
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@torch.inference_mode()
def test_what_is_no_number_stays_none(kind: str, bad: float) -> None:
    """A stage finds out from its results that its numbers went wrong."""
    made = streamed(layer(70, 128, False), kind)
    x = torch.randn(3, 128).bfloat16()
    x[1, 77] = bad
    finite = torch.isfinite(made(x)).all(1).tolist()
    assert finite == [True, False, True]


@HERE
@torch.inference_mode()
def test_int8_keeps_sixteen_bits_of_a_token_beside_its_largest_value() -> None:
    made = streamed(layer(64, 256, False), "int8")
    weight_NK = weights_of(made)
    x = torch.randn(4, 256).bfloat16()
    x[1, 7], x[2] = 300.0, 0.0  # beside which the others are small; and nothing at all
    expected = x.float() @ weight_NK.t()
    allowed = x.float().abs().amax(1) / 65_000 * weight_NK.abs().sum(1).amax() + expected.abs().amax(1) / 250
    assert ((made(x) - expected).abs().amax(1) <= allowed + 1e-30).all()


@HERE
def test_the_largest_sums_of_integers_fit() -> None:
    """A row of the largest weights, a token of the largest steps, in the widest row that is taken."""
    columns = INT8_COLUMNS
    assert takes("int8", columns)
    assert not takes("int8", columns + 64)
    packed = pack_int8(torch.full((64, columns), 127, dtype=torch.int8))
    scale, x = torch.ones(64).bfloat16(), torch.full((1, columns), -1.0).bfloat16()
    found = kernels()
    assert found is not None
    described = Linear(1, 64, columns, packed.data_ptr(), scale.data_ptr(), None)
    assert torch.allclose(found.product(described, x).float(), torch.tensor(-127.0 * columns), rtol=1e-2)


CASES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {"head_dim": 64},
    "mistral": {"sliding_window": 40},
}


def engine(family: str, dtype: torch.dtype, kind: str = "none") -> StageEngine:
    from transformers import AutoConfig

    config = AutoConfig.for_model(
        family, vocab_size=300, hidden_size=128, intermediate_size=320, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, tie_word_embeddings=False, **CASES[family],
    )  # fmt: skip
    made = StageEngine(config, dtype, 1 << 30, quantiser(kind))
    weights = RandomTensors(Parts(config, dtype).shapes(), 3)
    weights.read = _sharp(weights.read)  # type: ignore[method-assign]
    made.load(weights, 0, 3)
    return made


def _sharp(read: Any) -> Any:
    """Matrices ten times as large, so that attention prefers some positions to others; the same in every precision."""

    def larger(stored: Any, dtype: torch.dtype) -> Tensor:
        tensor = read(stored, torch.bfloat16)
        return (tensor * 10 if tensor.dim() == 2 else tensor).to(dtype)

    return larger


PASSES = (
    [Row(1, 0, 150, 0), Row(2, 0, 3, 0)],
    [Row(2, 3, 4, 0), Row(1, 150, 1, 0), Row(3, 0, 1, 0)],
    [Row(1, 151, 9, 0)],
)


def hidden(made: StageEngine) -> Tensor:
    """After two layers, of all tokens of the last two passes: few at a time, behind many and behind none."""
    for request in (1, 2, 3):
        made.open(request)
    out = []
    for rows in PASSES:
        tokens = [(17 * row.request + 5 * at) % 300 for row in rows for at in range(row.start, row.start + row.count)]
        found = made.forward(rows, tokens, 0, 2)
        assert isinstance(found, Tensor)
        out.append(found.float())
    return torch.cat(out[1:])


@HERE
@pytest.mark.parametrize("family", CASES)
def test_a_whole_layer_is_transformers_layer(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nearer to fp32 than, or as near as, the layer in pieces that torch computes in bf16."""
    exact = hidden(engine(family, torch.float32))
    whole = hidden(engine(family, torch.bfloat16))
    monkeypatch.setattr("medley.models.lean_layer.TOKENS", 0)
    pieces = hidden(engine(family, torch.bfloat16))
    lost, lost_in_pieces = ((found - exact).norm() / exact.norm() for found in (whole, pieces))
    assert not torch.equal(whole, pieces)
    assert lost <= 1.1 * lost_in_pieces + 1e-3
    assert lost < 0.1


@HERE
@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_a_whole_quantised_layer_is_the_one_in_pieces(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = hidden(engine("llama", torch.bfloat16, kind))
    monkeypatch.setattr("medley.models.lean_layer.TOKENS", 0)
    pieces = hidden(engine("llama", torch.bfloat16, kind))
    assert (whole - pieces).norm() < 0.05 * pieces.norm()


@HERE
def test_a_token_behind_many_positions_attends_to_all_of_them() -> None:
    """Block after block of keys, the last one in part."""
    made, exact = engine("llama", torch.bfloat16), engine("llama", torch.float32)
    for length in (1, 15, 16, 17, 63, 64, 65, 200, 333):
        found = []
        for one in (made, exact):
            one.open(9)
            one.forward([Row(9, 0, length, 0)], [(3 * i + length) % 300 for i in range(length)], 0, 2)
            out = one.forward([Row(9, length, 1, 0)], [length % 300], 0, 2)
            assert isinstance(out, Tensor)
            found.append(out.float())
            one.free(9)
        assert (found[0] - found[1]).norm() < 0.1 * found[1].norm(), length


@HERE
@pytest.mark.parametrize("position", [0, 5, 70, 99])
def test_a_key_that_is_no_number_is_not_passed_over(position: int) -> None:
    """It came with KV of another machine, and so does not show in the rows of this one."""
    made = engine("llama", torch.bfloat16)
    made.open(1)
    made.forward([Row(1, 0, 100, 0)], [7] * 100, 0, 2)
    kv = made.export_kv(1, range(2))
    kv[0, 0, :, position, 3] = float("nan")
    made.import_kv(2, range(2), 0, kv)
    out = made.forward([Row(2, 100, 1, 0)], [7], 0, 2)
    assert isinstance(out, Tensor)
    assert not torch.isfinite(out).any()


@HERE
@pytest.mark.parametrize("head_first", [True, False])
def test_a_tied_head_reads_the_embeddings_matrix_with_our_kernels(head_first: bool) -> None:
    from transformers import LlamaConfig

    config = LlamaConfig(
        vocab_size=96, hidden_size=64, num_attention_heads=2, num_hidden_layers=1, tie_word_embeddings=True
    )
    parts = Parts(config, torch.bfloat16, device=torch.device("cpu"))
    weights = RandomTensors(parts.shapes(), 1)
    if head_first:
        head = parts.head(weights)
        embedding = parts.embedding(weights, head)
    else:
        embedding = parts.embedding(weights)
        head = parts.head(weights, embedding)
    assert isinstance(head.lm_head, StreamedLinear)
    assert head.lm_head.packed.data_ptr() == embedding.embed_tokens.weight.data_ptr()


def why(tmp_path: Path, **environment: str) -> str:
    """What a fresh process says of the kernels."""
    code = "from medley.models.kernels.build import missing; print(missing())"
    told = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), **environment}
    done = subprocess.run(
        [sys.executable, "-c", code], env=told, capture_output=True, text=True, timeout=120, check=True
    )
    return done.stdout.strip()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="kernels are for Linux")
def test_where_kernels_cannot_be_it_is_said_why(tmp_path: Path) -> None:
    assert why(tmp_path, **{SWITCH: "torch"}) == f"{SWITCH} is 'torch'"
    assert why(tmp_path, PATH=str(tmp_path)) == "no C compiler is installed"
    broken = tmp_path / "cc"
    broken.write_text("#!/bin/sh\necho 'x.c:1: error: this compiler is tired' >&2\nexit 1\n")
    broken.chmod(0o755)
    assert why(tmp_path, CC=str(broken)) == f"'{broken}' says: x.c:1: error: this compiler is tired"
    (tmp_path / "medley").chmod(0o777)
    assert why(tmp_path) == f"'{tmp_path / 'medley'}' can be written by others"
    (tmp_path / "file").write_text("")
    assert why(tmp_path / "file").startswith("there is no place for what is compiled ([Errno 20] Not a directory")
    assert why(tmp_path, CC="gcc 'half") == "CC cannot be read (No closing quotation)"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="kernels are for Linux")
def test_who_has_no_home_has_no_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv(SWITCH, raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    found, said = build._found.__wrapped__()
    assert found is None
    assert said in ("there is no place for what is compiled (Could not determine home directory.)", missing())


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="kernels are for Linux")
def test_where_the_processor_says_nothing_of_itself_there_are_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv(SWITCH, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(build, "CPUINFO", tmp_path / "none")
    found, said = build._found.__wrapped__()
    assert found is None
    assert str(tmp_path / "none") in said or said == missing()


def test_with_a_word_that_the_switch_does_not_know_torch_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stage's process that refused it would be started again for ever."""
    monkeypatch.setenv(SWITCH, "of")
    assert build._found.__wrapped__() == (None, f"{SWITCH} is 'of'; it can be 'torch', or not be set")


@HERE
def test_kernels_are_compiled_once_and_for_their_owner_alone(tmp_path: Path) -> None:
    (tmp_path / "medley").mkdir(mode=0o755)
    mask = os.umask(0)
    try:
        assert why(tmp_path, CC=f"{shutil.which('cc') or 'gcc'} -m64") == ""
    finally:
        os.umask(mask)
    [made] = (tmp_path / "medley").iterdir()
    assert made.stat().st_mode & 0o077 == 0
    written = made.stat().st_mtime_ns
    assert why(tmp_path, CC=f"{shutil.which('cc') or 'gcc'} -m64") == ""
    assert [found.stat().st_mtime_ns for found in (tmp_path / "medley").iterdir()] == [written]
    assert why(tmp_path) == ""
    assert len(list((tmp_path / "medley").iterdir())) == 2  # of another command, another library


def test_without_kernels_no_layer_is_made_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medley.models.kernels.products.kernels", lambda: None)
    assert not takes("int8", 128)
    transform = quantiser("int8")
    assert transform is not None
    assert not isinstance(transform(layer(64, 128, False)), StreamedLinear)
