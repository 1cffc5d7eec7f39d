"""Invariants by their numbers, apart from the roles: what they promise is checked by code that shares none of theirs.

`everything()` makes the watchers of one world, in the order in which they must see it: the book first.
"""

from __future__ import annotations

from medley.runtimes.simulated.checkers.book import Book
from medley.runtimes.simulated.checkers.checkpoints import Checkpoints
from medley.runtimes.simulated.checkers.data import Samples
from medley.runtimes.simulated.checkers.jobs import Jobs
from medley.runtimes.simulated.checkers.pins import Pins
from medley.runtimes.simulated.checkers.security import Security
from medley.runtimes.simulated.checkers.training import Training
from medley.runtimes.simulated.checkers.violation import INVARIANTS, Violation
from medley.runtimes.simulated.watch import Watcher

__all__ = ["INVARIANTS", "Book", "Violation", "everything"]


def everything() -> tuple[Book, list[Watcher]]:
    """An empty book and all who check against it."""
    book = Book()
    # Records are checked against what was before (`Checkpoints`, `Security`), then folded (`Jobs`), then compared.
    watchers: list[Watcher] = [Checkpoints(book), Security(book), Jobs(book), Training(book), Pins(book), Samples(book)]
    return book, watchers
