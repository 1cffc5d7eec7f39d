"""A model of the hub as a directory: downloaded once, then from the local cache. Imports no torch."""

from __future__ import annotations

from pathlib import Path

# What a model needs, and nothing that could be code or another format of the same weights.
FILES = ("*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "*.model", "merges.txt", "vocab.txt")
TIMEOUT_S = 10


WEIGHTS = "*.safetensors"


def hub_directory(name: str) -> Path:
    """The files of a hub model. Raises OSError with a reason when neither the hub nor the cache has it."""
    return _snapshot(name, FILES)


def hub_words(name: str) -> Path:
    """The same without the weights, which may be there from earlier."""
    return _snapshot(name, tuple(pattern for pattern in FILES if pattern != WEIGHTS))


def _snapshot(name: str, patterns: tuple[str, ...]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=list(patterns), etag_timeout=TIMEOUT_S))
    except LocalEntryNotFoundError as error:
        raise OSError("the hub cannot be reached and the model is not in the local cache") from error
    except (HfHubHTTPError, HFValidationError) as error:
        raise OSError("the hub does not know it, or does not let you read it") from error
