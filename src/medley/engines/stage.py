"""A pipeline stage's arithmetic: some layers over a micro-batch of ragged rows, with the KV cache of every request.

A row is (request, start, count): tokens at absolute positions `start` and on: a chunk of a prompt, one token of a
decode, or a draft to verify. A row that begins before the end of what is held rewinds; one that begins beyond it is a
`Gap`. A refused micro-batch changes nothing; a pass that breaks off leaves its requests at the start of their rows. The
first stage takes token ids, the last one samples: by (seed, choice, position), so whoever computes a position again
draws the same token.

Leaves to others: which rows come when, frames, deadlines, generations.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from medley.engines.sampling import Sampling, TokenLogprob, draw, logprob
from medley.engines.stage_cache import RAGGED, Gap, NoRoom, RequestCache, Shape, Turn
from medley.models.slices import SlicedModel, Span, Transform, load_slice
from medley.models.weightfiles import WeightFiles
from medley.protocol.errors import MedleyError

MAX_ROWS = 256
MAX_TOKENS = 4096


class Refused(MedleyError):
    """A micro-batch that cannot be: an unknown request, a row twice, sizes that do not agree; nothing has changed."""


@dataclass(frozen=True, slots=True)
class Row:
    """`samples`: at how many of its last positions the last stage draws a token: 0 inside a prompt, 1 for the next
    token, k + 1 to verify a draft of k.
    """

    request: str
    start: int
    count: int
    samples: int = 0


@dataclass(frozen=True, slots=True)
class Drawn:
    """The token for absolute position `position`; or why there is none."""

    request: str
    position: int
    token: int
    logprob: TokenLogprob | None = None
    failure: str = ""


class StageEngine:
    """Built once for a span; `forward` is for one thread at a time."""

    def __init__(self, sliced: SlicedModel, kv_limit_nbytes: int) -> None:
        self.sliced, self.span = sliced, sliced.span
        self.kv_limit_nbytes = kv_limit_nbytes
        self._shape = _cache_shape(sliced)
        self._device = self._shape.device
        self._caches: dict[str, RequestCache] = {}
        self._sampling: dict[str, Sampling] = {}
        self._width = int(sliced.config.hidden_size)

    @classmethod
    def load(
        cls,
        weights: WeightFiles,
        config: object,
        span: Span,
        dtype: torch.dtype,
        kv_limit_nbytes: int,
        transform: Transform | None = None,
        device: torch.device | None = None,
    ) -> StageEngine:
        """Reads the span's tensors and nothing else. Raises UserError."""
        sliced = load_slice(weights, config, span, dtype, RAGGED, transform)
        return cls(sliced.to(device) if device else sliced, kv_limit_nbytes)

    # -- requests -------------------------------------------------------------------------------------------------

    def open(self, request: str, sampling: Sampling | None = None) -> None:
        """From now on rows of this request are taken. The last stage needs `sampling`."""
        if request in self._caches:
            raise Refused(f"request {request} is open already")
        self._caches[request] = RequestCache(self._shape, self.span.first, self.span.end)
        self._sampling[request] = sampling or Sampling()

    def cancel(self, request: str) -> None:
        """Forgets it and frees its KV; a second time does nothing."""
        self._caches.pop(request, None)
        self._sampling.pop(request, None)

    def held(self) -> Mapping[str, int]:
        """Positions held of each open request."""
        return {request: cache.length for request, cache in self._caches.items()}

    @property
    def kv_nbytes(self) -> int:
        return sum(cache.nbytes for cache in self._caches.values())

    # -- a pass ---------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def forward(self, rows: Sequence[Row], given: Sequence[int] | Tensor) -> Tensor | list[Drawn]:
        """Token ids (first stage) or hidden states [T, width] of all rows, one row after another. Answers hidden states
        [T, width] on the CPU for the next stage, or, from the last one, the tokens that were asked for.

        Raises Refused, Gap or NoRoom, with nothing changed.
        """
        turns = self._turns(rows, len(given))
        positions_1T = torch.cat([torch.arange(t.start, t.start + t.count) for t in turns])[None].to(self._device)
        hidden = self._begin(given, positions_1T)
        self._reserve(turns)
        for turn in turns:
            turn.cache.settle(turn.start)
        rotation = self.sliced.rotation(hidden, positions_1T)
        turning = {} if rotation is None else {"position_embeddings": rotation}
        for layer in self.sliced.layers:
            hidden = layer(hidden, attention_mask=None, position_ids=positions_1T, turns=turns, **turning)
        for turn in turns:
            turn.cache.settle(turn.start + turn.count)
        return self._draw(rows, turns, hidden[0]) if self.span.heads else hidden[0].cpu()

    def _begin(self, given: Sequence[int] | Tensor, positions_1T: Tensor) -> Tensor:
        if self.span.embeds:
            tokens_1T = torch.as_tensor(given, dtype=torch.long, device=self._device).reshape(1, -1)
            if not 0 <= int(tokens_1T.min()) <= int(tokens_1T.max()) < self.sliced.config.vocab_size:
                raise Refused(f"token ids lie between 0 and {self.sliced.config.vocab_size - 1}")
            return self.sliced.embed(tokens_1T, positions_1T)
        if not isinstance(given, Tensor) or given.shape != (positions_1T.shape[1], self._width):
            raise Refused(f"hidden states must be [{positions_1T.shape[1]}, {self._width}]")
        return given.to(self._device, self._shape.dtype)[None]

    def _turns(self, rows: Sequence[Row], tokens: int) -> list[Turn]:
        if not 0 < len(rows) <= MAX_ROWS or not 0 < tokens <= MAX_TOKENS:
            raise Refused(f"a micro-batch has 1 to {MAX_ROWS} rows and 1 to {MAX_TOKENS} tokens")
        if len({row.request for row in rows}) < len(rows):
            raise Refused("a request has two rows in one micro-batch")
        turns, place = [], 0
        for row in rows:
            cache = self._caches.get(row.request)
            if cache is None:
                raise Refused(f"request {row.request} is not open here")
            if row.count < 1 or not 0 <= row.samples <= row.count or row.start < 0:
                raise Refused(f"row {row} makes no sense")
            if row.start > cache.length:
                raise Gap(f"request {row.request} continues at {row.start}, {cache.length} positions are held")
            turns.append(Turn(cache, place, row.start, row.count))
            place += row.count
        if place != tokens:
            raise Refused(f"the rows have {place} tokens, {tokens} were given")
        longest = self.sliced.config.max_position_embeddings
        if max(t.start + t.count for t in turns) > longest:
            raise Refused(f"the model has {longest} positions")
        return turns

    def _reserve(self, turns: Sequence[Turn]) -> None:
        self._check_room(sum(t.cache.grown_nbytes(t.start + t.count) for t in turns))
        for turn in turns:
            turn.cache.reserve(turn.start + turn.count)

    def _check_room(self, more: int) -> None:
        if self.kv_nbytes + more > self.kv_limit_nbytes:
            raise NoRoom(f"{self.kv_nbytes + more} bytes of KV cache are over the limit of {self.kv_limit_nbytes}")

    def _draw(self, rows: Sequence[Row], turns: Sequence[Turn], hidden_TW: Tensor) -> list[Drawn]:
        places = [t.place + t.count - k for r, t in zip(rows, turns, strict=True) for k in range(r.samples, 0, -1)]
        if not places:
            return []
        logits_SV: np.ndarray = self.sliced.logits(hidden_TW[places]).float().cpu().numpy()
        wanted = [(r, r.start + r.count - k + 1) for r in rows for k in range(r.samples, 0, -1)]
        return [self._drawn(r, position, logits_V) for (r, position), logits_V in zip(wanted, logits_SV, strict=True)]

    def _drawn(self, row: Row, position: int, logits_V: np.ndarray) -> Drawn:
        if not np.isfinite(logits_V).all():
            return Drawn(row.request, position, -1, failure="the model answers with numbers that are not finite")
        sampling = self._sampling[row.request]
        token = draw(logits_V, sampling, position)
        told = None if sampling.logprobs is None else logprob(logits_V, token, sampling.logprobs)
        return Drawn(row.request, position, token, told)

    # -- the cache on its way -------------------------------------------------------------------------------------

    def export_kv(self, request: str, layers: range, start: int = 0, end: int | None = None) -> Tensor:
        """[layers, 2, G, end - start, D], a copy: keys and values of these layers at positions [start, end)."""
        cache = self._cache(request)
        stop = min(cache.held(layer) for layer in self._inside(layers)) if end is None else end
        if not 0 <= start <= stop or any(cache.held(layer) < stop for layer in layers):
            raise Gap(f"request {request}: positions {start} to {stop} are not held by layers {layers}")
        return torch.stack([torch.stack(cache.read(layer, start, stop)) for layer in layers]).cpu()

    def import_kv(self, request: str, layers: range, start: int, kv: Tensor) -> None:
        """What `export_kv` gave, for positions `start` and on; they must join what those layers hold.

        Raises Refused, Gap or NoRoom, with nothing changed.
        """
        cache = self._cache(request)
        tokens = kv.shape[3] if kv.dim() == 5 else -1
        if kv.shape != (len(self._inside(layers)), 2, self._shape.groups, tokens, self._shape.width):
            raise Refused(f"KV of shape {list(kv.shape)} does not belong to {len(layers)} layers of this model")
        if any(cache.held(layer) < start for layer in layers):
            raise Gap(f"request {request}: KV from {start} on does not join what is held")
        self._check_room(cache.grown_nbytes(start + tokens))
        cache.reserve(start + tokens)
        for layer, (keys, values) in zip(layers, kv, strict=True):
            cache.write(layer, start, keys.to(self._shape.dtype), values.to(self._shape.dtype))
        cache.settle(start + tokens, layers)

    def _cache(self, request: str) -> RequestCache:
        if request not in self._caches:
            raise Refused(f"request {request} is not open here")
        return self._caches[request]

    def _inside(self, layers: range) -> range:
        if layers.step != 1 or not self.span.first <= layers.start < layers.stop <= self.span.end:
            raise Refused(f"layers {layers} are not held; {self.span.first} to {self.span.end} are")
        return layers


def cancel_others(engine: StageEngine, living: Iterable[str]) -> list[str]:
    """Frees every request that is not among the living; which ones they were."""
    gone = sorted(set(engine.held()) - set(living))
    for request in gone:
        engine.cancel(request)
    return gone


def _cache_shape(sliced: SlicedModel) -> Shape:
    config = sliced.config
    heads = int(config.num_attention_heads)
    groups = int(getattr(config, "num_key_value_heads", None) or heads)
    width = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
    parameter = next(p for p in sliced.parameters() if p.is_floating_point())
    return Shape(groups, width, parameter.dtype, parameter.device)
