"""A stage's engine of integers (`text`): KV of each request in each layer, and the refusals of the real one.

As `engines.stage.StageEngine`: a refused micro-batch changes nothing, one whose numbers are not finite leaves its
requests at the start of their rows. Takes no time; its host charges for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from medley.engines.stage_refusals import Gap, NoRoom, NotFinite, Refused
from medley.protocol.stages.words import Draw, Opening, RequestId, Row
from medley.runtimes.simulated.serving.text import POISON, Entry, Hidden, drawn, embedded, through

STEP = 256  # positions by which a cache grows
Kv = tuple[tuple[Entry, ...], ...]  # of each layer, entries of consecutive positions


@dataclass(slots=True)
class Cache:
    """One request's entries by layer, and for how many positions of each layer there is room."""

    entries: dict[int, list[Entry]] = field(default_factory=dict)
    room: dict[int, int] = field(default_factory=dict)

    def held(self, layers: Sequence[int]) -> int:
        return min(len(self.entries.get(layer, ())) for layer in layers)

    def grown(self, positions: int, layers: Sequence[int]) -> int:
        """Positions more than now, over all these layers, if they had to hold so many."""
        wanted = -(-positions // STEP) * STEP
        return sum(max(0, wanted - self.room.get(layer, 0)) for layer in layers)

    def reserve(self, positions: int, layers: Sequence[int]) -> None:
        wanted = -(-positions // STEP) * STEP
        for layer in layers:
            self.room[layer] = max(wanted, self.room.get(layer, 0))
            self.entries.setdefault(layer, [])

    def settle(self, positions: int, layers: Sequence[int]) -> None:
        for layer in layers:
            del self.entries[layer][positions:]


class ModelledEngine:
    """`token_nbytes`: of KV, one token in one layer. `positions`: the context of the model."""

    def __init__(self, layers: int, token_nbytes: int, positions: int, kv_limit_nbytes: int) -> None:
        self.layers, self.token_nbytes, self.positions = layers, token_nbytes, positions
        self.kv_limit_nbytes = kv_limit_nbytes
        self._loaded: set[int] = set()
        self._caches: dict[RequestId, Cache] = {}
        self._openings: dict[RequestId, Opening] = {}

    # -- layers -------------------------------------------------------------------------------------------------------

    @property
    def loaded(self) -> tuple[int, ...]:
        return tuple(sorted(self._loaded))

    def load(self, first: int, end: int) -> None:
        self._loaded.update(self._known(first, end))

    def unload(self, first: int, end: int) -> None:
        self._loaded.difference_update(self._known(first, end))
        for cache in self._caches.values():
            for layer in range(first, end):
                cache.entries.pop(layer, None)
                cache.room.pop(layer, None)

    # -- requests -----------------------------------------------------------------------------------------------------

    @property
    def requests(self) -> tuple[RequestId, ...]:
        return tuple(self._caches)

    @property
    def kv_nbytes(self) -> int:
        return sum(sum(cache.room.values()) for cache in self._caches.values()) * self.token_nbytes

    def open(self, opening: Opening) -> None:
        """What is held stays; with `donor_tokens` it begins as a copy of the donor. Raises NoRoom."""
        request = opening.request
        copies = self._copies(opening) if opening.donor_tokens else {}
        cache = self._caches.get(request) or Cache()
        self._check_room(request, sum(cache.grown(tokens, (layer,)) for layer, tokens in copies.items()))
        for layer, tokens in copies.items():
            cache.reserve(tokens, (layer,))
            cache.entries[layer][:] = self._caches[opening.donor].entries[layer][:tokens]
        self._caches[request] = cache
        self._openings[request] = opening

    def _copies(self, opening: Opening) -> dict[int, int]:
        if opening.donor == opening.request or opening.donor not in self._caches:
            return {}
        own = self._caches.get(opening.request) or Cache()
        theirs = self._caches[opening.donor].entries
        wanted = {layer: min(len(entries), opening.donor_tokens) for layer, entries in theirs.items()}
        return {layer: n for layer, n in wanted.items() if n > own.held((layer,))}

    def free(self, request: RequestId) -> None:
        self._caches.pop(request, None)
        self._openings.pop(request, None)

    def held(self, first: int, end: int) -> dict[RequestId, int]:
        layers = self._known(first, end)
        return {request: cache.held(layers) for request, cache in self._caches.items()}

    def entries(self, request: RequestId, layer: int) -> tuple[Entry, ...]:
        """For whoever checks."""
        cache = self._caches.get(request)
        return tuple(cache.entries.get(layer, ())) if cache is not None else ()

    # -- a pass -------------------------------------------------------------------------------------------------------

    def forward(
        self, rows: Sequence[Row], given: Sequence[Any], first: int, end: int
    ) -> tuple[Hidden, ...] | tuple[Draw, ...]:
        """Token ids in at layer 0, else hidden states; these out, or what was drawn after the last layer.

        Raises Refused, Gap, NoRoom or NotFinite.
        """
        layers = self._known(first, end)
        missing = [layer for layer in layers if layer not in self._loaded]
        if missing:
            raise Refused(f"layer {missing[0]} is not loaded here")
        caches = [self._checked(row, layers) for row in rows]
        if sum(row.count for row in rows) != len(given):
            raise Refused(f"the rows have {sum(row.count for row in rows)} tokens, {len(given)} were given")
        self._reserve(rows, caches, layers)
        out: list[Hidden] = []
        for row, cache in zip(rows, caches, strict=True):
            cache.settle(row.start, layers)
            mine = given[len(out) : len(out) + row.count]
            hidden = [embedded(t, row.start + i) for i, t in enumerate(mine)] if first == 0 else list(mine)
            for layer in layers:
                hidden = through(layer, cache.entries[layer], hidden)
            out += hidden
        return self._drawn(rows, caches, out, layers) if end == self.layers else tuple(out)

    def _checked(self, row: Row, layers: Sequence[int]) -> Cache:
        cache = self._cache(row.request)
        if row.count < 1 or not 0 <= row.samples <= row.count or row.start < 0:
            raise Refused(f"row {row} makes no sense", row.request)
        if row.start + row.count > self.positions:
            raise Refused(f"the model has {self.positions} positions", row.request)
        held = cache.held(layers)
        if row.start > held:
            raise Gap(f"request {row.request} continues at {row.start}, {held} positions are held", row.request, held)
        return cache

    def _reserve(self, rows: Sequence[Row], caches: Sequence[Cache], layers: Sequence[int]) -> None:
        if len({row.request for row in rows}) < len(rows):
            raise Refused("a request has two rows in one micro-batch")
        grown = [cache.grown(row.start + row.count, layers) for row, cache in zip(rows, caches, strict=True)]
        greediest = max(range(len(rows)), key=lambda i: grown[i])
        self._check_room(rows[greediest].request, sum(grown))
        for row, cache in zip(rows, caches, strict=True):
            cache.reserve(row.start + row.count, layers)

    def _drawn(
        self, rows: Sequence[Row], caches: Sequence[Cache], hidden: Sequence[Hidden], layers: Sequence[int]
    ) -> tuple[Draw, ...]:
        out: list[Draw] = []
        place = 0
        for row in rows:
            opening = self._openings[row.request]
            place += row.count
            if opening.seed == POISON and row.samples:
                for other, cache in zip(rows, caches, strict=True):
                    cache.settle(other.start, layers)
                raise NotFinite("the model answers with numbers that are not finite", row.request, row.start)
            last = range(row.samples, 0, -1)
            out += [drawn(opening, row.start + row.count - k + 1, hidden[place - k]) for k in last]
        return tuple(out)

    # -- the cache on its way -----------------------------------------------------------------------------------------

    def export_kv(self, request: RequestId, first: int, end: int, start: int, stop: int) -> Kv:
        """Entries of positions [start, stop). Raises Refused or Gap."""
        cache = self._cache(request)
        held = cache.held(self._known(first, end))
        if not 0 <= start <= stop <= held:
            raise Gap(f"request {request}: {start} to {stop} are not held", request, held)
        return tuple(tuple(cache.entries[layer][start:stop]) for layer in range(first, end)) if stop > start else ()

    def import_kv(self, request: RequestId, first: int, end: int, start: int, kv: Kv) -> None:
        """What `export_kv` gave; the layers need not be loaded. Opens the request. Raises Refused, Gap or NoRoom."""
        layers = self._known(first, end)
        cache = self._caches.get(request) or Cache()
        if len(kv) != len(layers):
            raise Refused(f"KV of {len(kv)} layers does not belong to {len(layers)}", request)
        held = cache.held(layers)
        if not 0 <= start <= held:
            raise Gap(f"request {request}: KV from {start} on does not join the {held} held", request, held)
        stop = start + len(kv[0])
        self._check_room(request, cache.grown(stop, layers))
        cache.reserve(stop, layers)
        cache.settle(start, layers)
        for layer, entries in zip(layers, kv, strict=True):
            cache.entries[layer] += entries
        self._caches[request] = cache
        self._openings.setdefault(request, Opening(request, 0.0, 1.0, 0, 0, 0, -1, 0, 0))

    # -- checks -------------------------------------------------------------------------------------------------------

    def _check_room(self, request: RequestId, more: int) -> None:
        wanted = self.kv_nbytes + more * self.token_nbytes
        if more and wanted > self.kv_limit_nbytes:
            said = f"{wanted} bytes of KV cache are over the limit of {self.kv_limit_nbytes}"
            raise NoRoom(said, request)

    def _cache(self, request: RequestId) -> Cache:
        if request not in self._caches:
            raise Refused(f"request {request} is not open here", request)
        return self._caches[request]

    def _known(self, first: int, end: int) -> range:
        if not 0 <= first < end <= self.layers:
            raise Refused(f"layers {first} to {end} are no part of a model of {self.layers} layers")
        return range(first, end)
