"""Codecs: exact sizes, bounded errors, and payloads that nobody honest wrote."""

from __future__ import annotations

import subprocess
import sys
from math import ceil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medley.compression import CODEC_NAMES, make_codec
from medley.compression.codec import Codec, NonFinite, bytes_of
from medley.protocol.errors import FrameError, UserError
from medley.protocol.spec import Compression

SIZES = [1, 2, 63, 64, 65, 1023, 1024, 1025, 4095, 4096, 4097, 8192, 10_001]
sizes = st.one_of(st.sampled_from(SIZES), st.integers(1, 9000))
magnitudes = st.sampled_from([1e-30, 1e-9, 1e-3, 1.0, 7e4, 1e30])
densities = st.sampled_from([0.001, 0.015625, 0.3, 1.0])


def codec(kind: str, density: float = 0.015625) -> Codec:
    return make_codec(Compression(kind=kind, density=density))


def values(n: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed)) * scale


def roundtrip(c: Codec, x: torch.Tensor) -> torch.Tensor:
    return c.decode(bytes(bytes_of(c.encode(x))), x.numel())


def test_names_are_known_without_torch():
    code = "import sys, medley.compression as c, medley.aggregation;print(c.CODEC_NAMES, 'torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert out.stdout.strip() == f"{CODEC_NAMES} False"


def test_wrong_names_and_densities_are_a_persons_mistake():
    with pytest.raises(UserError, match="did you mean 'topk'"):
        codec("topkk")
    for density in (0.0, -1.0, 1.5, float("nan")):
        with pytest.raises(UserError, match="density"):
            codec("topk", density)


@given(st.sampled_from(CODEC_NAMES), sizes, densities)
@settings(deadline=None)
def test_a_payload_has_exactly_the_promised_size(kind: str, n: int, density: float):
    c = codec(kind, density)
    assert c.encode(values(n)).numel() == c.nbytes(n)
    assert roundtrip(c, values(n)).shape == (n,)


def test_sizes_on_the_wire_are_what_the_names_promise():
    n = 1 << 20
    ratio = {kind: 4 * n / codec(kind).nbytes(n) for kind in CODEC_NAMES}
    assert ratio["none"] == 1.0
    assert ratio["fp16"] > 1.99
    assert ratio["int8"] > 3.98
    assert ratio["topk"] > 100


@given(sizes, magnitudes, st.integers(0, 99))
@settings(deadline=None)
def test_none_is_exact(n: int, scale: float, seed: int):
    x = values(n, seed, scale)
    assert torch.equal(roundtrip(codec("none"), x), x)


@given(sizes, magnitudes, st.integers(0, 99))
@settings(deadline=None)
def test_fp16_keeps_eleven_bits_at_any_magnitude(n: int, scale: float, seed: int):
    x = values(n, seed, scale)
    error = (roundtrip(codec("fp16"), x) - x).abs()
    assert (error <= x.abs() * 2**-11 + x.abs().max() * 2**-38).all()


@given(sizes, magnitudes, st.integers(0, 99))
@settings(deadline=None)
def test_int8_is_off_by_half_a_step_at_most(n: int, scale: float, seed: int):
    x = values(n, seed, scale)
    error = (roundtrip(codec("int8"), x) - x).abs()
    for start in range(0, n, 1024):
        group = slice(start, start + 1024)
        assert error[group].max() <= x[group].abs().max() / 127 * 0.5001


@given(sizes, densities, magnitudes, st.integers(0, 99))
@settings(deadline=None)
def test_topk_keeps_the_largest_of_each_chunk(n: int, density: float, scale: float, seed: int):
    x = values(n, seed, scale)
    y = roundtrip(codec("topk", density), x)
    for start in range(0, n, 4096):
        chunk, seen = x[start : start + 4096], y[start : start + 4096]
        kept = chunk.abs().topk(ceil(density * chunk.numel())).indices
        others = torch.ones_like(chunk, dtype=torch.bool).index_fill(0, kept, False)
        assert not seen[others].any()
        assert (seen[kept] - chunk[kept]).abs().max() <= chunk.abs().max() * (0.51 / 127 + 2**-8)


@pytest.mark.parametrize("kind", CODEC_NAMES)
def test_the_same_values_give_the_same_bytes_and_input_stays(kind: str):
    x = values(9000)
    before = x.clone()
    first, second = codec(kind).encode(x), codec(kind).encode(x.clone())
    assert torch.equal(first, second)
    assert torch.equal(x, before)
    x.zero_()
    assert torch.equal(first, second)


@pytest.mark.parametrize("kind", CODEC_NAMES)
def test_zeros_and_extremes_survive(kind: str):
    for x in (torch.zeros(5000), torch.full((5000,), 3e38), torch.full((5000,), -1e-45)):
        y = roundtrip(codec(kind, 1.0), x)
        assert torch.isfinite(y).all()
        assert (y - x).abs().max() <= 0.005 * x.abs().max() + 1e-40


@pytest.mark.parametrize("kind", CODEC_NAMES)
@pytest.mark.parametrize("poison", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("where", [0, 4095, 4096, 4999])
def test_a_diverged_update_is_never_decoded_as_a_finite_one(kind: str, poison: float, where: int):
    x = values(5000)
    x[where] = poison
    payload = bytes(bytes_of(codec(kind).encode(x)))
    try:
        y = codec(kind).decode(payload, 5000)
    except NonFinite:
        assert kind != "none"
    else:
        assert not torch.isfinite(y).all()


@given(st.sampled_from(CODEC_NAMES), sizes, st.integers(-9, 9).filter(bool))
@settings(deadline=None)
def test_a_wrong_length_is_refused(kind: str, n: int, off: int):
    c = codec(kind)
    with pytest.raises(FrameError, match="bytes where"):
        c.decode(bytes(max(0, c.nbytes(n) + off)), n)


@given(st.sampled_from(CODEC_NAMES), st.sampled_from([1, 70, 1024, 4099]), st.data())
@settings(deadline=None)
def test_garbage_is_refused_or_decodes_to_n_values(kind: str, n: int, data: st.DataObject):
    c = codec(kind, 0.3)
    seed = data.draw(st.integers(0, 1 << 30))
    noise = torch.randint(0, 256, (c.nbytes(n),), generator=torch.Generator().manual_seed(seed))
    try:
        y = c.decode(bytes_of(noise.to(torch.uint8)), n)
    except FrameError:
        return
    assert y.shape == (n,)


@pytest.mark.parametrize("kind", ["fp16", "int8"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -1.0])
def test_impossible_scales_are_refused_before_anything_is_written(kind: str, bad: float):
    raw = codec(kind).encode(values(2000))
    raw[4:8].view(torch.float32).fill_(bad)
    out = torch.full((2000,), 7.0)
    with pytest.raises(FrameError, match="scale"):
        codec(kind).decode(bytes_of(raw), 2000, out=out)
    assert (out == 7.0).all()


@pytest.mark.parametrize("triple", [(5, 0x50, 0), (6, 0x50, 0), (0xFF, 0xFF, 0xFF)])
def test_doubled_unordered_and_outlying_offsets_are_refused(triple: tuple[int, int, int]):
    """Ten elements at density 0.2 keep two: bytes are one bf16 scale, one triple of offsets, two values."""
    c = codec("topk", 0.2)
    raw = c.encode(values(10))
    raw[2:5] = torch.tensor(triple, dtype=torch.uint8)
    out = torch.full((10,), 7.0)
    with pytest.raises(FrameError, match="offsets"):
        c.decode(bytes_of(raw), 10, out=out)
    assert (out == 7.0).all()


def test_an_offset_beyond_a_short_last_chunk_is_refused():
    c = codec("topk", 0.1)
    raw = c.encode(values(10))
    assert raw.numel() == 2 + 3 + 1
    raw[2] = 10
    with pytest.raises(FrameError, match="offsets"):
        c.decode(bytes_of(raw), 10)
