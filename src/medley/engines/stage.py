"""A pipeline stage's arithmetic: any layers of one model over a micro-batch of ragged rows, with the KV cache of every
request in every layer.

Layers come and go while requests are served: `load` fills them on any thread, and a layer is there only once it is
whole. A row that begins before the end of what is held rewinds; one that begins beyond it is a `Gap`. A refused
micro-batch changes nothing; one that breaks off, or whose numbers are not finite, leaves its requests at the start of
their rows. Layer 0 takes token ids, the last layer samples: by (seed, choice, position), so whoever computes a position
again draws the same token.

Leaves to others: which rows come when, frames, deadlines, generations.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from medley.engines.sampling import Sampling, draw, logprob
from medley.engines.stage_cache import RAGGED, RequestCache, Shape, Turn, places_of
from medley.engines.stage_refusals import Gap, NoRoom, NotFinite, Refused
from medley.models.lean_layer import turning_of
from medley.models.slices import Embedding, Head, Parts, Transform
from medley.models.weightfiles import Stored, Tensors
from medley.protocol.stages.words import ROWS_MAX, TOKENS_MAX, Alternative, Draw, RequestId, Row


@dataclass(frozen=True, slots=True)
class _Held:
    """What is loaded; replaced whole, so that a pass sees one state of it."""

    layers: dict[int, nn.Module]
    embedding: Embedding | None = None
    head: Head | None = None


class _Counted:
    """Tensors, and how many of their bytes were read."""

    def __init__(self, tensors: Tensors) -> None:
        self._tensors = tensors
        self.nbytes = 0

    def find(self, *names: str) -> Stored:
        return self._tensors.find(*names)

    def read(self, stored: Stored, dtype: torch.dtype) -> Tensor:
        self.nbytes += stored.nbytes
        return self._tensors.read(stored, dtype)


class StageEngine:
    """One for a process. All but `load` and `loaded` is for the one thread that computes."""

    def __init__(
        self,
        config: Any,
        dtype: torch.dtype,
        kv_limit_nbytes: int,
        transform: Transform | None = None,
        device: torch.device | None = None,
    ) -> None:
        self.kv_limit_nbytes = kv_limit_nbytes
        self._device = device or torch.device("cpu")
        self._parts = Parts(config, dtype, RAGGED, transform, self._device)
        self.config = self._parts.config
        self._rotary = self._parts.rotary()
        self._shape = _cache_shape(self.config, dtype, self._device)
        self._width = int(self.config.hidden_size)
        self._held = _Held({})
        self._changing = threading.Lock()
        self._caches: dict[RequestId, RequestCache] = {}
        self._sampling: dict[RequestId, Sampling] = {}

    # -- layers ---------------------------------------------------------------------------------------------------

    @property
    def layers(self) -> int:
        """Of the whole model."""
        return self._parts.layers

    @property
    def dtype(self) -> torch.dtype:
        return self._shape.dtype

    @property
    def token_nbytes(self) -> int:
        """KV of one position in one layer."""
        return self._shape.token_nbytes

    @property
    def loaded(self) -> tuple[int, ...]:
        return tuple(sorted(self._held.layers))

    def load(self, tensors: Tensors, first: int, end: int) -> int:
        """Holds layers [first, end) too, with the embedding where they begin the model and the head where they end it.

        Answers how many bytes were read. What is held already is not read again. Raises Refused, and UserError for
        weights that are not this model's; parts that were filled before that stay.
        """
        self._known(range(first, end))
        counted = _Counted(tensors)
        if first == 0 and self._held.embedding is None:
            embedding = self._parts.embedding(counted, self._held.head)
            self._change(embedding=embedding)
        for index in range(first, end):
            if index not in self._held.layers:
                layer = self._parts.layer(counted, index)
                self._change(added={index: layer})
        if end == self.layers and self._held.head is None:
            head = self._parts.head(counted, self._held.embedding)
            self._change(head=head)
        return counted.nbytes

    def unload(self, first: int, end: int) -> None:
        """Forgets layers [first, end) and their KV, with the embedding and the head as `load` says."""
        self._known(range(first, end))
        with self._changing:
            held = self._held
            self._held = _Held(
                {index: layer for index, layer in held.layers.items() if not first <= index < end},
                held.embedding if first else None,
                held.head if end < self.layers else None,
            )
        for cache in self._caches.values():
            cache.drop(range(first, end))

    def _change(
        self,
        added: dict[int, nn.Module] | None = None,
        embedding: Embedding | None = None,
        head: Head | None = None,
    ) -> None:
        with self._changing:
            held = self._held
            self._held = _Held(held.layers | (added or {}), embedding or held.embedding, head or held.head)

    # -- requests -------------------------------------------------------------------------------------------------

    def open(
        self, request: RequestId, sampling: Sampling | None = None, donor: RequestId = 0, donor_tokens: int = 0
    ) -> None:
        """From now on rows of this request are taken, and its tokens are drawn in this way; what is held of it stays.

        With `donor_tokens` it begins as a copy of so many first positions of the request `donor`, in every layer that
        holds more of that one. Raises NoRoom, with nothing changed.
        """
        copies = self._copies(request, donor, donor_tokens) if donor_tokens else {}
        cache = self._caches.get(request) or RequestCache(self._shape)
        self._check_room(request, sum(cache.grown_nbytes(tokens, (layer,)) for layer, tokens in copies.items()))
        for layer, tokens in copies.items():
            cache.reserve(tokens, (layer,))
            cache.layers[layer].write(0, *self._caches[donor].layers[layer].read(0, tokens))
            cache.settle(tokens, (layer,))
        self._caches[request] = cache
        self._sampling[request] = sampling or Sampling()

    def _copies(self, request: RequestId, donor: RequestId, donor_tokens: int) -> dict[int, int]:
        """Positions to copy by layer."""
        if donor == request or donor not in self._caches:
            return {}
        own = self._caches.get(request)
        wanted = {layer: min(held.length, donor_tokens) for layer, held in self._caches[donor].layers.items()}
        return {layer: n for layer, n in wanted.items() if n > (own.held((layer,)) if own else 0)}

    def free(self, request: RequestId) -> None:
        """Forgets it and its KV; a second time does nothing."""
        self._caches.pop(request, None)
        self._sampling.pop(request, None)

    def held(self, first: int, end: int) -> dict[RequestId, int]:
        """Positions of each open request that all layers [first, end) hold."""
        layers = self._known(range(first, end))
        return {request: cache.held(layers) for request, cache in self._caches.items()}

    @property
    def requests(self) -> tuple[RequestId, ...]:
        return tuple(self._caches)

    @property
    def kv_nbytes(self) -> int:
        return sum(cache.nbytes for cache in self._caches.values())

    # -- a pass ---------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def forward(self, rows: Sequence[Row], given: Sequence[int] | Tensor, first: int, end: int) -> Tensor | list[Draw]:
        """Layers [first, end) over token ids (from layer 0) or hidden states [T, width] of all rows, one row after
        another. Answers hidden states [T, width] on the CPU, or, from the last layer, the tokens that were asked for.

        Raises Refused, Gap, NoRoom or NotFinite.
        """
        held, layers = self._held, self._known(range(first, end))
        self._check_loaded(held, layers)
        turns = self._turns(rows, len(given), layers)
        positions_1T = torch.cat([torch.arange(t.start, t.start + t.count) for t in turns])[None].to(self._device)
        hidden = self._begin(None if first else held.embedding, given, positions_1T)
        self._reserve(turns, layers)
        for turn in turns:
            turn.cache.settle(turn.start, layers)
        hidden = self._run([held.layers[index] for index in layers], hidden, positions_1T, turns)
        drawn = self._draw(held.head, rows, turns, hidden[0]) if held.head and end == self.layers else None
        for turn in turns:
            turn.cache.settle(turn.start + turn.count, layers)
        return hidden[0].cpu() if drawn is None else drawn

    def _check_loaded(self, held: _Held, layers: range) -> None:
        missing = [f"layer {index}" for index in layers if index not in held.layers]
        missing += ["the embedding"] * (layers.start == 0 and held.embedding is None)
        missing += ["the head"] * (layers.stop == self.layers and held.head is None)
        if missing:
            raise Refused(f"{missing[0]} is not loaded here")

    def _run(self, layers: Sequence[nn.Module], hidden: Tensor, positions_1T: Tensor, turns: Sequence[Turn]) -> Tensor:
        if self._rotary is not None:
            turning = turning_of(self._rotary, hidden, positions_1T)
            places = partial(places_of, turns) if hidden.is_cpu and hidden.dtype == torch.bfloat16 else None
            for layer in layers:
                hidden = layer(hidden, turning, places, turns=turns)
            return hidden
        for layer in layers:
            hidden = layer(hidden, attention_mask=None, position_ids=positions_1T, turns=turns)
        return hidden

    def _begin(self, embedding: Embedding | None, given: Sequence[int] | Tensor, positions_1T: Tensor) -> Tensor:
        if embedding is not None:
            tokens_1T = torch.as_tensor(given, dtype=torch.long, device=self._device).reshape(1, -1)
            if not 0 <= int(tokens_1T.min()) <= int(tokens_1T.max()) < self.config.vocab_size:
                raise Refused(f"token ids lie between 0 and {self.config.vocab_size - 1}")
            hidden: Tensor = embedding(tokens_1T, positions_1T)
            return hidden
        if not isinstance(given, Tensor) or given.shape != (positions_1T.shape[1], self._width):
            raise Refused(f"hidden states must be [{positions_1T.shape[1]}, {self._width}]")
        return given.to(self._device, self._shape.dtype)[None]

    def _turns(self, rows: Sequence[Row], tokens: int, layers: range) -> list[Turn]:
        if not 0 < len(rows) <= ROWS_MAX or not 0 < tokens <= TOKENS_MAX:
            raise Refused(f"a micro-batch has 1 to {ROWS_MAX} rows and 1 to {TOKENS_MAX} tokens")
        if len({row.request for row in rows}) < len(rows):
            raise Refused("a request has two rows in one micro-batch")
        turns, place = [], 0
        for row in rows:
            turns.append(self._turn(row, place, layers))
            place += row.count
        if place != tokens:
            raise Refused(f"the rows have {place} tokens, {tokens} were given")
        return turns

    def _turn(self, row: Row, place: int, layers: range) -> Turn:
        cache = self._cache(row.request)
        if row.count < 1 or not 0 <= row.samples <= row.count or row.start < 0:
            raise Refused(f"row {row} makes no sense", row.request)
        if row.start + row.count > self.config.max_position_embeddings:
            raise Refused(f"the model has {self.config.max_position_embeddings} positions", row.request)
        held = cache.held(layers)
        if row.start > held:
            raise Gap(f"request {row.request} continues at {row.start}, {held} positions are held", row.request, held)
        return Turn(cache, place, row.start, row.count)

    def _reserve(self, turns: Sequence[Turn], layers: range) -> None:
        grown = [(turn.cache, turn.cache.grown_nbytes(turn.start + turn.count, layers)) for turn in turns]
        if any(more for _, more in grown):
            greediest = max(range(len(turns)), key=lambda i: grown[i][1])
            request = next(r for r, cache in self._caches.items() if cache is grown[greediest][0])
            self._check_room(request, sum(more for _, more in grown))
        for turn in turns:
            turn.cache.reserve(turn.start + turn.count, layers)

    def _check_room(self, request: RequestId, more: int) -> None:
        if more and self.kv_nbytes + more > self.kv_limit_nbytes:
            said = f"{self.kv_nbytes + more} bytes of KV cache are over the limit of {self.kv_limit_nbytes}"
            raise NoRoom(said, request)

    def _draw(self, head: Head, rows: Sequence[Row], turns: Sequence[Turn], hidden_TW: Tensor) -> list[Draw]:
        places = [t.place + t.count - k for r, t in zip(rows, turns, strict=True) for k in range(r.samples, 0, -1)]
        if not places:
            return []
        logits_SV: np.ndarray = head(hidden_TW[places]).float().cpu().numpy()
        wanted = [(r.request, r.start + r.count - k + 1) for r in rows for k in range(r.samples, 0, -1)]
        return [self._drawn(r, position, logits_V) for (r, position), logits_V in zip(wanted, logits_SV, strict=True)]

    def _drawn(self, request: RequestId, position: int, logits_V: np.ndarray) -> Draw:
        if not np.isfinite(logits_V).all():
            raise NotFinite("the model answers with numbers that are not finite", request, position)
        sampling = self._sampling[request]
        token = draw(logits_V, sampling, position)
        if sampling.logprobs is None:
            return Draw(request, position, token, 0.0, ())
        told = logprob(logits_V, token, sampling.logprobs)
        return Draw(request, position, token, told.logprob, tuple(Alternative(*one) for one in told.top))

    # -- the cache on its way -------------------------------------------------------------------------------------

    def export_kv(self, request: RequestId, layers: range, start: int = 0, end: int | None = None) -> Tensor:
        """[layers, 2, G, end - start, D], a copy: keys and values of these layers at positions [start, end)."""
        cache = self._cache(request)
        held = cache.held(self._known(layers))
        stop = held if end is None else end
        if not 0 <= start <= stop or stop > held:
            raise Gap(f"request {request}: layers {layers} do not hold {start} to {stop}", request, held)
        shape = self._shape
        kv = torch.empty(len(layers), 2, shape.groups, stop - start, shape.width, dtype=shape.dtype)
        for place, layer in enumerate(layers if stop > start else ()):
            kv[place, 0], kv[place, 1] = cache.layers[layer].read(start, stop)
        return kv

    def import_kv(self, request: RequestId, layers: range, start: int, kv: Tensor) -> None:
        """What `export_kv` gave, for positions `start` and on; they must join what those layers hold, which need not
        be loaded. Opens the request.

        Raises Refused, Gap or NoRoom, with nothing changed.
        """
        cache = self._caches.get(request) or RequestCache(self._shape)
        tokens = kv.shape[3] if kv.dim() == 5 else -1
        if kv.shape != (len(self._known(layers)), 2, self._shape.groups, tokens, self._shape.width):
            raise Refused(f"KV of shape {list(kv.shape)} does not belong to {len(layers)} layers here", request)
        if start + tokens > self.config.max_position_embeddings:
            raise Refused(f"the model has {self.config.max_position_embeddings} positions", request)
        held = cache.held(layers)
        if not 0 <= start <= held:
            raise Gap(f"request {request}: KV from {start} on does not join the {held} held", request, held)
        self._check_room(request, cache.grown_nbytes(start + tokens, layers))
        cache.reserve(start + tokens, layers)
        for layer, (keys, values) in zip(layers, kv, strict=True):
            cache.layers[layer].write(start, keys.to(self._shape.dtype), values.to(self._shape.dtype))
        cache.settle(start + tokens, layers)
        self._caches[request] = cache
        self._sampling.setdefault(request, Sampling())

    def _cache(self, request: RequestId) -> RequestCache:
        if request not in self._caches:
            raise Refused(f"request {request} is not open here", request)
        return self._caches[request]

    def _known(self, layers: range) -> range:
        if layers.step != 1 or not 0 <= layers.start < layers.stop <= self.layers:
            raise Refused(f"layers {layers.start} to {layers.stop} are no part of a model of {self.layers} layers")
        return layers


def _cache_shape(config: Any, dtype: torch.dtype, device: torch.device) -> Shape:
    heads = int(config.num_attention_heads)
    groups = int(getattr(config, "num_key_value_heads", None) or heads)
    width = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
    return Shape(groups, width, dtype, device)
