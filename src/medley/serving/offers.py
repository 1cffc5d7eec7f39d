"""What pools serve, as somebody finds it who wants answers: the API's address, and whether it wants a key.

A front notes its own offer; the coordinator keeps notes for whoever looks. A key is in no note: who has one sends it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from medley.protocol.hosts import is_loopback


@dataclass(frozen=True, slots=True)
class Offer:
    """A model `name` at `url` (http://host:port/v1). `source`: the directory that was named, if one was."""

    name: str
    url: str
    keyed: bool = False
    source: str = ""
    job: str = ""

    @property
    def noted(self) -> dict[str, Any]:
        """As the front's note tells it."""
        return {"url": self.url, "keyed": self.keyed, "source": self.source}

    @property
    def open_here(self) -> bool:
        """Whether any program of this machine may ask: by loopback, without a key."""
        return not self.keyed and is_loopback(urlsplit(self.url).hostname or "")


def offers(servings: Iterable[Mapping[str, Any]]) -> list[Offer]:
    """Of the answer to `servings`: those that answer now and say where."""
    found = []
    for serving in servings:
        note = serving.get("note") or {}
        told = note.get("offer")
        if note.get("serving") and isinstance(told, dict) and str(told.get("url", "")).startswith("http://"):
            keyed, source = bool(told.get("keyed")), str(told.get("source", ""))
            found.append(Offer(serving["name"], told["url"], keyed, source, serving["job"]))
    return found


def chosen(model: str, among: Iterable[Offer]) -> Offer | None:
    """The one that MODEL means: by name or job; a path only by the directory that it is."""
    path = str(Path(model).expanduser().resolve())
    is_path = model.startswith((".", "~", "/"))
    found = [o for o in among if o.source == path or (not is_path and model in (o.name, o.job))]
    return found[-1] if found else None
