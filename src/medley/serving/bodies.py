"""JSON that came over HTTP, refused where Python would accept more than text can carry."""

from __future__ import annotations

import json
from typing import Any


def read_json(content: bytes) -> Any:
    """The value of a JSON body in UTF-8. Raises ValueError with a sentence."""
    try:
        value = json.loads(content.decode("utf-8"))
        if b"\\ud" in content.lower():
            # An escaped half of a character is valid JSON, but neither a tokenizer nor an answer can hold it.
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeError as error:
        raise ValueError("the body is not valid UTF-8 text") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the body is not valid JSON: {error}") from error
    return value
