"""A tensor file passes only if its header is small and covers the data exactly once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from medley.protocol.errors import Damaged
from medley.store.tensorfile import MAX_HEADER_NBYTES, TensorEntry, check_tensor_file


def raw(header: Any, data: bytes = b"", claimed: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if claimed is None else claimed).to_bytes(8, "little") + text + data


def entry(begin: int, end: int, shape: list[int], dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def test_a_file_of_the_library_passes(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    tensors: dict[str, numpy.ndarray] = {"a": numpy.ones((2, 3), numpy.float16), "b": numpy.array(4.0, numpy.float32)}
    path.write_bytes(save(tensors, metadata={"x": "y"}))
    checked = check_tensor_file(path)
    assert {name: (t.dtype, t.shape, t.nbytes) for name, t in checked.items()} == {
        "a": ("F16", (2, 3), 12),
        "b": ("F32", (), 4),
    }
    b: TensorEntry = checked["b"]
    content = path.read_bytes()
    assert numpy.frombuffer(content[b.offset : b.offset + b.nbytes], numpy.float32)[0] == 4.0
    path.write_bytes(save({}))
    assert check_tensor_file(path) == {}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"1234", "too few"),
        (raw({}, claimed=MAX_HEADER_NBYTES + 1), "the limit is"),
        (raw({}, claimed=3000), "the file has"),
        (raw(b"{not json"), "cannot be read"),
        (raw(b"[" * 100_000), "cannot be read"),
        (raw({"a": {"dtype": "F32", "shape": [1]}}), "cannot be read"),
        (raw({"a": {**entry(0, 4, [1]), "extra": 1}}, bytes(4)), "cannot be read"),
        (raw({"__metadata__": {"a": 1}}), "cannot be read"),
        (raw({"a": entry(0, 4, [1], "PICKLE")}, bytes(4)), "unknown type"),
        (raw({"a": entry(0, 8, [1])}, bytes(8)), "should take 4 bytes"),
        (raw({"a": entry(0, 4, [1]), "b": entry(0, 4, [1])}, bytes(4)), "from 4"),
        (raw({"a": entry(4, 8, [1])}, bytes(8)), "from 0"),
        (raw({"a": entry(0, 4, [1])}, bytes(5)), "end at byte"),
        (raw({"a": entry(0, 0, [0])}), "dimension of 0"),
        (raw({"a": entry(0, 4, [-1, -1])}, bytes(4)), "dimension of -1"),
        (raw({"a": entry(0, 4, [1] * 9)}, bytes(4)), "9 dimensions"),
        (raw({"a" * 600: entry(0, 4, [1])}, bytes(4)), "600 characters"),
        (raw({str(n): entry(n, n + 1, [1], "U8") for n in range(20_001)}, bytes(20_001)), "20001 tensors"),
    ],
)
def test_every_broken_rule_has_its_sentence(content: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(Damaged, match=reason):
        check_tensor_file(path)


@settings(max_examples=100, deadline=None)
@given(content=st.one_of(st.binary(max_size=200), st.binary(max_size=200).map(raw)))
def test_no_bytes_raise_anything_else(content: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed.safetensors"
    path.write_bytes(content)
    try:
        check_tensor_file(path)
    except Damaged:
        return
