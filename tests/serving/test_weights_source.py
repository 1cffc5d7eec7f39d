"""Which weights a front hands on: a directory's, a hub model's that lies in the cache, or the hub's own by ranges."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from tests.models.hub_setup import hub_of
from tests.tinymodels import saved, tiny

from medley.models.described import described, fingerprint
from medley.models.hub_ranges import HubRanges
from medley.models.weightfiles import WeightFiles
from medley.protocol.errors import UserError
from medley.serving import resolve, weights_source
from medley.serving.fleet import model_text
from medley.serving.weights_source import open_source


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    return saved(tiny("llama"), tmp_path / "whole")


@pytest.fixture
def cached(tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the hub's client has in its cache after configuration and tokenizer came."""
    words = tmp_path / "snapshots" / ("ab" * 20)
    shutil.copytree(whole, words, ignore=shutil.ignore_patterns("*.safetensors"))
    monkeypatch.setattr(weights_source, "hub_words", lambda name: words)
    return words


def test_a_directory_is_handed_on_from_its_files(whole: Path) -> None:
    source = open_source(str(whole))
    assert isinstance(source.stock, WeightFiles)
    assert source.path == str(whole)
    assert source.fingerprint == fingerprint(source.stock)


def test_a_hub_model_that_is_not_here_is_read_by_ranges(whole: Path, cached: Path) -> None:
    with hub_of(whole) as hub:
        source = open_source("some/model", endpoint=hub.url)
        assert isinstance(source.stock, HubRanges)
        assert hub.revisions == {"ab" * 20}, "weights of the same revision as the tokenizer"
        weights = sum(file.stat().st_size for file in whole.glob("*.safetensors"))
        assert hub.sent < weights / 2, "headers, and nothing of the weights yet"
        told = described(model_text(source, "bf16"))
        assert (told.name, told.path, told.fingerprint) == ("some/model", "", source.fingerprint)
        assert told.config == json.loads((whole / "config.json").read_text())
        files = WeightFiles.open(whole.joinpath)
        assert source.stock.manifest() == files.manifest()
        stored = files.find("model.layers.1.mlp.up_proj.weight")
        assert torch.equal(source.stock.read(stored, stored.dtype), files.read(stored, stored.dtype))
        source.stock.close()


def test_a_hub_model_that_lies_in_the_cache_is_read_from_there(whole: Path, cached: Path) -> None:
    for file in whole.glob("*.safetensors"):
        shutil.copy(file, cached)
    source = open_source("some/model", endpoint="http://127.0.0.1:1")
    assert isinstance(source.stock, WeightFiles)
    assert source.path == str(cached.resolve())


def test_stages_on_this_machine_get_the_whole_model_once(
    whole: Path, cached: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resolve, "hub_directory", lambda name: whole)
    assert open_source("some/model", whole=True).path == str(whole.resolve())


def test_half_a_download_is_no_model_and_the_hub_is_asked(whole: Path, cached: Path) -> None:
    shutil.copy(sorted(whole.glob("*.safetensors"))[0], cached)
    with pytest.raises(UserError, match="the hub does not give"):
        open_source("some/model", endpoint="http://127.0.0.1:1")


def test_what_has_no_configuration_is_a_sentence(cached: Path) -> None:
    (cached / "config.json").unlink()
    with pytest.raises(UserError, match=r"no config\.json"):
        open_source("some/model")
