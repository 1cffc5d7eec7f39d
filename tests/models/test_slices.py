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

from medley.models.random_weights import RandomTensors
from medley.models.slices import Parts, Sizes, config_of_directory, sizes
from medley.models.weightfiles import MAX_HEADER_NBYTES, WeightFiles, directory_files, read_header
from medley.protocol.errors import UserError


def opened(directory: Path) -> WeightFiles:
    return WeightFiles.open(directory_files(directory))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("shard", ["30KB", "10MB"], ids=["sharded", "single"])
def test_parts_together_are_the_model(family: str, shard: str, tmp_path: Path) -> None:
    model = tiny(family)
    directory = saved(model, tmp_path, shard)
    weights, parts = opened(directory), Parts(config_of_directory(directory), torch.float32)
    decoder = getattr(model.model, "decoder", model.model)
    embedding, head = parts.embedding(weights), parts.head(weights)
    pairs = [(embedding, decoder), (head.lm_head, model.lm_head)]
    pairs += [(parts.layer(weights, index), decoder.layers[index]) for index in range(LAYERS)]
    if head.norm is not None:
        pairs.append((head.norm, getattr(decoder, "norm", None) or decoder.final_layer_norm))
    if head.project_out is not None:
        pairs.append((head.project_out, decoder.project_out))
    for made, original in pairs:
        state = original.state_dict()
        for name, value in made.state_dict().items():
            assert torch.equal(value, state[name]), name
        assert not any(p.is_meta or p.requires_grad for p in made.parameters())
    stored = {k: tuple(v.shape) for k, v in model.state_dict().items()}
    if parts.tied:
        del stored["lm_head.weight"]
    assert parts.shapes() == stored


def test_only_the_files_of_the_slice_are_asked_for(tmp_path: Path) -> None:
    directory = saved(tiny("llama"), tmp_path)
    holders = json.loads((directory / "model.safetensors.index.json").read_text())["weight_map"]
    needed = {file for name, file in holders.items() if ".layers.1." in name}
    for file in set(holders.values()) - needed:
        (directory / file).unlink()
    parts = Parts(config_of_directory(directory), torch.float32)
    parts.layer(opened(directory), 1)
    with pytest.raises(UserError, match=r"file 'model-.*' of the index is missing"):
        for index in (0, 2, 3):
            parts.layer(opened(directory), index)


def test_bf16_and_a_checkpoint_of_a_bare_decoder(tmp_path: Path) -> None:
    model = tiny("opt")
    model.model.save_pretrained(str(tmp_path))
    config = config_of_directory(tmp_path)
    parts = Parts(config, torch.bfloat16)
    layer: Any = parts.layer(opened(tmp_path), 2)
    assert {p.dtype for p in layer.parameters()} == {torch.bfloat16}
    assert torch.equal(layer.fc1.weight, model.model.decoder.layers[2].fc1.weight.bfloat16())
    embedding = parts.embedding(opened(tmp_path))
    assert parts.head(opened(tmp_path), embedding).lm_head.weight is embedding.embed_tokens.weight


def test_the_wrong_model_gets_a_sentence(tmp_path: Path) -> None:
    directory = saved(tiny("llama"), tmp_path)
    config = config_of_directory(directory)
    config.intermediate_size = 96
    with pytest.raises(UserError, match="has the shape"):
        Parts(config, torch.float32).layer(opened(directory), 0)
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
    parts = Parts(config, torch.bfloat16)
    weights = RandomTensors(parts.shapes(), seed=1)
    layer: Any = parts.layer(weights, 0)
    embedding = parts.embedding(weights)
    head = parts.head(weights)

    def nbytes(part: Any) -> int:
        return sum(p.nbytes for p in part.parameters())

    assert told == Sizes(
        LAYERS,
        nbytes(layer),
        nbytes(embedding),
        nbytes(head),
        2 * layer.self_attn.v_proj.weight.shape[0] * 2,
        2 * config.hidden_size,
        config.tie_word_embeddings,
    )


PEAK = """
import sys, torch
from pathlib import Path
from medley.models.slices import Parts, config_of_directory
from medley.models.weightfiles import WeightFiles, directory_files
directory = Path(sys.argv[1])
config = config_of_directory(directory)
def kept(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))
parts = Parts(config, torch.bfloat16)
weights = WeightFiles.open(directory_files(directory))
parts.layer(weights, 0)  # what the first use of the libraries costs
Path("/proc/self/clear_refs").write_text("5")  # the peak of importing was higher: begin anew
before = kept("VmRSS")
made = [parts.layer(weights, index) for index in range(1, 5)]
print(kept("VmHWM") - before, sum(p.nbytes for layer in made for p in layer.parameters()))
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
