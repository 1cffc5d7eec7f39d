"""From token ids to pieces of text that can be sent at once.

A piece never ends inside a UTF-8 character, never shows the beginning of a stop string, and the pieces
joined are what decoding all tokens at once gives. Knows nothing of models; the tokenizer comes in as a
function from ids to text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

INCOMPLETE = "\ufffd"  # what decoders write for bytes that are not (yet) a character


class TextStream:
    """Turns tokens into text as they come; `stops` end it and are not shown."""

    def __init__(self, decode: Callable[[Sequence[int]], str], stops: Sequence[str] = ()) -> None:
        self._decode = decode
        self._stops = tuple(s for s in stops if s)
        self._tokens: list[int] = []
        self._base = 0  # decoding starts here: far enough back for the spaces between words to come out right
        self._boundary = 0  # the latest token where the text was complete
        self._seen = 0  # characters of decode(tokens[base:]) already taken
        self._held = ""  # text that may be the beginning of a stop string
        self.stopped = False

    def push(self, token: int) -> str:
        """The text that may be shown now that `token` is known."""
        if self.stopped:
            return ""
        self._tokens.append(token)
        text = self._decode(self._tokens[self._base :])
        complete = text.rstrip(INCOMPLETE)
        fresh, self._seen = complete[self._seen :], max(self._seen, len(complete))
        if text and complete == text:
            self._move_base()
        return self._release(fresh)

    def finish(self) -> str:
        """The rest: a character that was never completed, and what only looked like a stop string."""
        if self.stopped:
            return ""
        shown = self._release(self._decode(self._tokens[self._base :])[self._seen :])
        if not self.stopped:
            shown, self._held = shown + self._held, ""
        return shown

    def _move_base(self) -> None:
        context = self._decode(self._tokens[self._boundary :])
        if context and self._boundary > self._base:
            self._base, self._seen = self._boundary, len(context)
        self._boundary = len(self._tokens)

    def _release(self, fresh: str) -> str:
        text = self._held + fresh
        cuts = [at for at in (text.find(stop) for stop in self._stops) if at >= 0]
        if cuts:
            self.stopped, self._held = True, ""
            return text[: min(cuts)]
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest proper beginning of `stop` that `text` ends with."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
