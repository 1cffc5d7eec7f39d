"""Where the weights of MODEL lie, for a front that hands them on: in files here, or on the hub, to be read by ranges.

Of a hub model that was not downloaded before and whose stages are elsewhere, only configuration and tokenizer are: a
layer's tensors are asked for when a stage asks for them. An adapter is merged into its base first, once.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from medley.engines.hub import hub_directory, hub_words
from medley.jobs.home import home
from medley.models.described import fingerprint
from medley.models.hub_ranges import HubRanges
from medley.models.remote_weights import Stock
from medley.models.weightfiles import WeightFiles
from medley.protocol.errors import UserError
from medley.serving.resolve import checked, resolve_model


@dataclass(frozen=True, slots=True)
class WeightsSource:
    """`directory`: configuration and tokenizer; `path`: the weights, for stages on this machine, or nothing."""

    name: str
    directory: Path
    stock: Stock
    fingerprint: str
    path: str


def open_source(model: str, whole: bool = False, endpoint: str | None = None) -> WeightsSource:
    """Raises UserError. `whole`: all of a hub model comes to this machine, and stays in the cache.

    `endpoint`: of another hub than the usual one.
    """
    resolved = resolve_model(model, download=None if whole else hub_words)
    if resolved.kind == "hub" and not whole and not _whole(resolved.directory):
        return _ranges(resolved.name, resolved.directory, endpoint)
    return _files(resolved.name, resolved.directory)


def _files(name: str, directory: Path) -> WeightsSource:
    whole = merged(directory)
    files = WeightFiles.open(whole.joinpath)
    return WeightsSource(name, whole, files, fingerprint(files), str(whole.resolve()))


def _ranges(name: str, directory: Path, endpoint: str | None) -> WeightsSource:
    """The revision is that of the files which came already: the cache names their directory so."""
    if (directory / "adapter_config.json").is_file():
        return _files(name, checked(hub_directory(name)))
    if not (directory / "config.json").is_file():
        raise UserError(f"'{name}' is not a model that Medley serves: it has no config.json")
    ranges = HubRanges.open(name, endpoint, directory.name)
    return WeightsSource(name, directory, ranges, ranges.fingerprint(), "")


def _whole(directory: Path) -> bool:
    """Whether all weights are here."""
    try:
        WeightFiles.open(checked(directory).joinpath).manifest()
    except UserError:
        return False
    return True


def merged(directory: Path) -> Path:
    """A directory whose tensors are the model's; an adapter's are merged with its base's, kept for the next time."""
    if not (directory / "adapter_config.json").exists():
        return directory
    stamp = (directory / "adapter_model.safetensors").stat()
    target = home() / "merged" / f"{directory.name}-{stamp.st_mtime_ns:x}-{stamp.st_size:x}"
    if not (target / "config.json").is_file():
        from medley.engines.stored import load_stored

        model, tokenizer = load_stored(directory, "fp32")
        beside = target.with_name(target.name + ".unfinished")
        model.save_pretrained(str(beside), safe_serialization=True)
        tokenizer.save_pretrained(str(beside))
        beside.rename(target)
    return target
