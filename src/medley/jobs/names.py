"""What jobs are called: an identifier is the job's name, made safe for a path, and six hexadecimal digits."""

from __future__ import annotations

import re
import secrets

_DIGITS = 3  # bytes


def new_id(name: str) -> str:
    """A new identifier for a job of this name: "My job!" becomes "My-job-1f03c2"."""
    return f"{_slug(name)}-{secrets.token_hex(_DIGITS)}"


def is_of(identifier: str, name: str) -> bool:
    """Whether an identifier may be that of a job of this name."""
    slug, dash, digits = identifier.rpartition("-")
    return bool(dash) and slug == _slug(name) and re.fullmatch(r"[0-9a-f]{6}", digits) is not None


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9-]+", "-", name).strip("-")[:40] or "job"
