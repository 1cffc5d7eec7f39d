"""The draft model beside a front: opened like MODEL, checked against its vocabulary, asked on a thread of its own.

A front's event loop never waits for it. Whatever goes wrong in it ends guessing, with a sentence, and no answer.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from medley.engines.wording import Wording, load_words
from medley.observe.logs import logger
from medley.protocol.errors import UserError, first_line
from medley.protocol.stages.events import Guess, Guessed, GuessesEnd
from medley.runtimes.clock import SystemClock
from medley.serving.weights_source import WeightsSource, open_source

if TYPE_CHECKING:
    from medley.engines.guesser import Guesser

MUCH = 32  # tokens to read before a guess, beyond which its time says nothing about the next one
THREADS_MOST = 4
END_S = 10.0

Told = Callable[[Guessed | GuessesEnd], None]

log = logger("guessing")


class Guessing:
    """`begin`, then `guess` as often as wanted; `close`. `told` is called on the thread."""

    def __init__(self, guesser: Guesser, threads: int) -> None:
        self._guesser, self._threads = guesser, threads
        self._asked: queue.SimpleQueue[Guess | None] = queue.SimpleQueue()
        self._closing = False
        self._thread: threading.Thread | None = None

    def begin(self, told: Told) -> None:
        self._thread = threading.Thread(target=self._run, args=(told,), name="medley-guessing", daemon=True)
        self._thread.start()

    def guess(self, asked: Guess) -> None:
        self._asked.put(asked)

    def close(self) -> None:
        """Waits for the guess that is being made."""
        self._closing = True
        self._asked.put(None)
        if self._thread is not None:
            self._thread.join(END_S)

    def _run(self, told: Told) -> None:
        with suppress(RuntimeError):  # nobody listens any more
            try:
                self._work(told)
            except Exception as error:  # the edge of the thread: no answer may depend on a draft
                log.error("the draft model failed", exc_info=error)
                told(GuessesEnd(first_line(error)))

    def _work(self, told: Told) -> None:
        from medley.engines.stage_threads import use_threads
        from medley.engines.stage_wire import sampling_of

        use_threads(self._threads)
        clock = SystemClock()
        while (asked := self._asked.get()) is not None and not self._closing:
            began_ns = clock.now_ns()
            sampling = sampling_of(asked.opening)
            tokens, read = self._guesser.guess(asked.opening.request, asked.tokens, asked.count, sampling)
            spent_ns = clock.now_ns() - began_ns if read <= MUCH else 0
            if self._closing:
                return
            told(Guessed(asked.opening.request, len(asked.tokens), tokens, spent_ns))


def check_draft(draft: str, model: str, whole: bool) -> None:
    """Before anything is started. Raises UserError for a draft model that cannot guess for MODEL."""
    source = open_source(model, whole=whole)
    _opened(draft, load_words(source.directory, source.name))


def open_guessing(draft: str, words: Wording, dtype: str, kv_tokens: int) -> Guessing:
    """The draft model in memory, ready to guess for the model of these words. Raises UserError."""
    source = _opened(draft, words)
    from medley.engines.generate import Generator
    from medley.engines.guesser import Guesser

    guesser = Guesser(Generator.load(source.directory, dtype, source.name), words.vocabulary, kv_tokens)
    try:
        guesser.warm_up()
    except (UserError, RuntimeError, ValueError, TypeError, AttributeError, IndexError) as error:
        raise UserError(f"--draft-model '{draft}' cannot guess: {first_line(error)}") from error
    return Guessing(guesser, max(1, min(THREADS_MOST, (os.cpu_count() or 1) // 2)))


def _opened(draft: str, words: Wording) -> WeightsSource:
    try:
        source = open_source(draft, whole=True)
    except UserError as error:
        raise UserError(f"--draft-model: {error}") from error
    check_vocabularies(words, load_words(source.directory, source.name))
    return source


def check_vocabularies(words: Wording, draft: Wording) -> None:
    """Raises UserError where a token is not the same number in both. One of the two may have more tokens at the end."""
    numbers, guessed = words.tokenizer.get_vocab(), draft.tokenizer.get_vocab()
    end = min(max(numbers.values()), max(guessed.values()))
    texts = {number: text for text, number in guessed.items()}
    for text, number in sorted(numbers.items(), key=lambda pair: pair[1]):
        if number <= end and texts.get(number) != text:
            raise UserError(
                f"--draft-model '{draft.name}' has another vocabulary than {words.name}: token {number} is {text!r} "
                f"there and {texts.get(number, '')!r} here; take a smaller model of the same family"
            )
