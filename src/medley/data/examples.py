"""One question with its answer: what every source yields and everything after it consumes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Example:
    """`group` is what the split keeps together: a disease, a topic, or the question's own text."""

    id: str
    group: str
    question: str
    answer: str


def tidy(text: str) -> str:
    """Join ragged lines: runs of blanks become one space, blank lines stay as one line break.

    Half a surrogate pair, which JSON can spell and UTF-8 cannot, becomes a question mark.
    """
    text = text.encode("utf-8", "replace").decode("utf-8")
    paragraphs = (" ".join(part.split()) for part in text.replace("\r", "").split("\n\n"))
    return "\n".join(p for p in paragraphs if p)
