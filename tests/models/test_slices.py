"""A slice reads its own tensors and nothing else, costs about its own bytes, and believes no header unchecked."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tinymodels import FAMILIES, LAYERS, saved, tiny

from medley.models.slices import FAMILIES as KNOWN
from medley.models.slices import Sizes, Span, config_of_directory, load_slice, random_slice, sizes
from medley.models.weightfiles import MAX_HEADER_NBYTES, WeightFiles, directory_files, read_header
from medley.protocol.errors import UserError


def opened(directory: Path) -> WeightFiles:
    return WeightFiles.open(directory_files(directory))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("shard", ["30KB", "10MB"], ids=["sharded", "single"])
def test_slices_together_are_the_model(family: str, shard: str, tmp_path: Path) -> None:
    model = tiny(family)
    directory = saved(model, tmp_path, shard)
    config = config_of_directory(directory)
    state = model.state_dict()
    base, norm = KNOWN[config.model_type]
    for a, b in ((0, 1), (1, 3), (3, 4), (0, 4)):
        sliced = load_slice(opened(directory), config, Span(a, b, LAYERS), torch.float32)
        for name, value in sliced.state_dict().items():
            if name.startswith("layers."):
                _, place, rest = name.split(".", 2)
                stored = f"{base}.layers.{int(place) + a}.{rest}"
            else:
                stored = name if name.startswith("lm_head") else f"{base}.{name.replace('norm.', f'{norm}.')}"
            assert torch.equal(value, state[stored]), name
        assert (sliced.embed_tokens is not None, sliced.lm_head is not None) == (a == 0, b == LAYERS)
        assert not any(p.is_meta or p.requires_grad for p in sliced.parameters())


def test_only_the_files_of_the_slice_are_asked_for(tmp_path: Path) -> None:
    directory = saved(tiny("llama"), tmp_path)
    holders = json.loads((directory / "model.safetensors.index.json").read_text())["weight_map"]
    needed = {file for name, file in holders.items() if ".layers.1." in name}
    for file in set(holders.values()) - needed:
        (directory / file).unlink()
    config = config_of_directory(directory)
    load_slice(opened(directory), config, Span(1, 2, LAYERS), torch.float32)
    with pytest.raises(UserError, match=r"file 'model-.*' of the index is missing"):
        load_slice(opened(directory), config, Span(0, LAYERS, LAYERS), torch.float32)


def test_bf16_and_a_checkpoint_of_a_bare_decoder(tmp_path: Path) -> None:
    model = tiny("opt")
    model.model.save_pretrained(str(tmp_path))
    config = config_of_directory(tmp_path)
    sliced = load_slice(opened(tmp_path), config, Span(0, LAYERS, LAYERS), torch.bfloat16)
    assert {p.dtype for p in sliced.parameters()} == {torch.bfloat16}
    stored: Any = model.model.decoder.layers[2].fc1.weight
    assert torch.equal(sliced.layers[2].fc1.weight, stored.bfloat16())  # type: ignore[union-attr]
    assert sliced.lm_head.weight is sliced.embed_tokens.weight  # type: ignore[union-attr]


def test_the_wrong_model_gets_a_sentence(tmp_path: Path) -> None:
    directory = saved(tiny("llama"), tmp_path)
    config = config_of_directory(directory)
    with pytest.raises(UserError, match="layers 2 to 2 are no slice of a model of 4"):
        Span(2, 2, LAYERS)
    config.intermediate_size = 96
    with pytest.raises(UserError, match="has the shape"):
        load_slice(opened(directory), config, Span(0, 1, LAYERS), torch.float32)
    (directory / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(UserError, match="family 'gpt2', which cannot be split into stages; these can: llama"):
        config_of_directory(directory)
    with pytest.raises(UserError, match="neither model.safetensors nor"):
        opened(tmp_path / "nothing")


def written(path: Path, header: object, data: bytes, claims: int | None = None) -> Path:
    head = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(head) if claims is None else claims) + head + data)
    return path


def entry(begin: int, end: int, shape: list[int], dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    ("header", "data", "claims", "says"),
    [
        ({}, b"", 1 << 60, "claims"),
        ({}, b"", MAX_HEADER_NBYTES + 1, "claims"),
        (b"{}{", b"", None, "cannot be read"),
        (b"[" * 5000, b"", None, "cannot be read"),
        ({"a": entry(0, 8, [1])}, b"12345678", None, "should take 4 bytes"),
        ({"a": entry(4, 8, [1])}, b"12345678", None, "from 0"),
        ({"a": entry(0, 4, [1]), "b": entry(0, 4, [1])}, b"1234", None, "from 4"),
        ({"a": entry(0, 4, [1])}, b"12345678", None, "end at byte"),
        ({"a": entry(0, 4, [-1, -1])}, b"1234", None, "shape"),
        ({"a": entry(0, 4, [1] * 9)}, b"1234", None, "shape"),
        ({"a": entry(0, 4, [1 << 62, 4])}, b"1234", None, "should take"),
        ({"a": entry(0, 4, [1], "Q9")}, b"1234", None, "type 'Q9'"),
        ({"a": entry(0, 4, [1]) | {"more": 1}}, b"1234", None, "cannot be read"),
    ],
)
def test_headers_that_lie_are_refused(
    tmp_path: Path, header: object, data: bytes, claims: int | None, says: str
) -> None:
    with pytest.raises(UserError, match=says):
        read_header(written(tmp_path / "model.safetensors", header, data, claims))


@pytest.mark.parametrize(
    "file", ["../x.safetensors", "/etc/x.safetensors", "..\\x.safetensors", "C:x.safetensors", "x.bin"]
)
def test_an_index_cannot_name_files_elsewhere(tmp_path: Path, file: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": file}}))
    with pytest.raises(UserError, match="no safetensors file beside it"):
        opened(tmp_path)


def test_an_index_that_lies_about_a_file_is_caught(tmp_path: Path) -> None:
    written(tmp_path / "x.safetensors", {"a": entry(0, 4, [1])}, b"1234")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"b": "x.safetensors"}}))
    with pytest.raises(UserError, match="says that 'x.safetensors' holds 'b'"):
        opened(tmp_path).find("b")


@pytest.mark.parametrize("family", FAMILIES)
def test_sizes_are_those_of_what_is_loaded(family: str, tmp_path: Path) -> None:
    config = tiny(family).config
    told = sizes(config, torch.bfloat16)
    made = random_slice(config, Span(0, LAYERS, LAYERS), torch.bfloat16, seed=1)

    def nbytes(*parts: Any) -> int:
        return sum(p.nbytes for part in parts if part is not None for p in part.parameters())

    assert told == Sizes(
        LAYERS,
        nbytes(made.layers[0]),
        nbytes(made.embed_tokens, made.embed_positions, made.project_in),
        nbytes(made.norm, made.project_out, made.lm_head),
        2 * made.layers[0].self_attn.v_proj.weight.shape[0] * 2,  # type: ignore[union-attr, operator, index]
        2 * config.hidden_size,
        config.tie_word_embeddings,
    )


PEAK = """
import sys, torch
from pathlib import Path
from medley.models.slices import Span, config_of_directory, load_slice
from medley.models.weightfiles import WeightFiles, directory_files
directory = Path(sys.argv[1])
config = config_of_directory(directory)
def kept(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))
load = lambda span, dtype: load_slice(WeightFiles.open(directory_files(directory)), config, span, dtype)
load(Span(0, 1, 6), torch.bfloat16)  # what the first use of the libraries costs
Path("/proc/self/clear_refs").write_text("5")  # the peak of importing was higher: begin anew
before = kept("VmRSS")
made = load(Span(1, 5, 6), torch.bfloat16)
print(kept("VmHWM") - before, sum(p.nbytes for p in made.parameters()))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak can be read and reset on Linux only")
def test_loading_costs_about_the_slices_own_bytes(tmp_path: Path) -> None:
    model = tiny("llama", layers=6, hidden_size=512, intermediate_size=2048, num_key_value_heads=4)
    directory = saved(model, tmp_path, "20MB")
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(directory)], capture_output=True, text=True, timeout=100, check=True
    )
    grown, own = map(int, done.stdout.split())
    largest_in_file = 4 * 512 * 2048
    # One layer's worth was in use before, and freed: it may be used again.
    assert 0.5 * own < grown < 1.15 * own + largest_in_file, (grown, own)
